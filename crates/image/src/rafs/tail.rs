//! What follows the data in a blob: tables, the layer's own bootstrap, and a table of contents.
//!
//! ```text
//! v6: data, header; table of chunks, its header, header; digests of chunks, header; bootstrap, header; TOC, header
//! v5: data, header; bootstrap, header
//! ```
//! Where the data stays in the original layer, the file has all but the data and is the layer's index.
//! "header" is a tar header that *follows* what it is about, so that all can be written without seeking and
//! read from the end: the form nydus-snapshotter takes apart. Read `chunks.rs` for the data.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::Path;

use nydus_storage::device::BlobFeatures;
use nydus_storage::meta::{BlobCompressionContextHeader, BlobMetaChunkArray, toc};
use nydus_utils::compress;
use nydus_utils::digest::{self, RafsDigest};
use sha2::{Digest, Sha256};

use super::blob::{Blob, ChunkTable, DIGESTER};
use super::blob_bytes::BlobBytes;
use super::chunks::{BlobFile, Data};
use super::reference::Index;
use crate::config::{ChunkSize, Compressor, FsVersion, RafsFormat};
use crate::layers::LayerError;
use crate::tree::Chunk;

const HEADER_BYTES: u64 = 512;
const COPY_BYTES: usize = 256 << 10;
/// An entry of the table of contents: flags, name, digest, offset, sizes, and room for more.
const TOC_ENTRY_BYTES: usize = 128;

/// How a layer is converted, as far as its blob is concerned.
#[derive(Debug, Clone, Copy)]
pub(crate) struct BlobFormat {
    pub(crate) fs_version: FsVersion,
    pub(crate) compressor: compress::Algorithm,
    pub(crate) chunk_size: ChunkSize,
}

impl From<RafsFormat> for BlobFormat {
    fn from(format: RafsFormat) -> Self {
        Self {
            fs_version: format.fs_version,
            compressor: match format.compressor {
                Compressor::None => compress::Algorithm::None,
                Compressor::Lz4Block => compress::Algorithm::Lz4Block,
                Compressor::Zstd => compress::Algorithm::Zstd,
            },
            chunk_size: format.chunk_size,
        }
    }
}

/// A blob that awaits its layer's bootstrap.
pub(crate) struct Tail {
    format: BlobFormat,
    file: BlobFile,
    toc: toc::TocEntryList,
    chunks: Vec<Chunk>,
    uncompressed_bytes: u64,
    data_bytes: u64,
    index: Option<Index>,
    chunk_table: Option<ChunkTable>,
}

impl Tail {
    /// Writes what comes between the data and the bootstrap.
    pub(crate) fn after(data: Data, format: BlobFormat) -> Result<Self, LayerError> {
        let mut tail = Self {
            format,
            data_bytes: data.file.position(),
            file: data.file,
            toc: toc::TocEntryList::new(),
            chunks: data.chunks,
            uncompressed_bytes: data.uncompressed_bytes,
            index: data.index,
            chunk_table: None,
        };
        if !tail.chunks.is_empty() {
            if tail.index.is_none() {
                tail.end_of_data()?;
            }
            if format.fs_version == FsVersion::V6 {
                tail.chunk_table()?;
            }
        }
        Ok(tail)
    }

    pub(crate) fn chunks(&self) -> &[Chunk] {
        &self.chunks
    }

    /// The blob as its own bootstrap has it: its digest isn't known yet.
    pub(crate) fn blob_so_far(&self) -> Blob {
        let id = match &self.index {
            Some(index) => index.original.id.clone(),
            None => "x".repeat(64),
        };
        self.blob(id, self.features() | BlobFeatures::INLINED_FS_META)
    }

    /// Writes the bootstrap and what follows it.
    pub(crate) fn finish(mut self, bootstrap: &[u8]) -> Result<Blob, LayerError> {
        let offset = self.file.position();
        let v6 = self.format.fs_version == FsVersion::V6;
        let (stored, compressor) = if v6 {
            self.compressed(bootstrap, compress::Algorithm::Zstd)?
        } else {
            (bootstrap.into(), compress::Algorithm::None)
        };
        self.file.write(&stored)?;
        self.header(toc::TOC_ENTRY_BOOTSTRAP, stored.len() as u64)?;
        let mut blob = self.blob(String::new(), self.features());
        if v6 {
            let digest = RafsDigest::from_buf(bootstrap, digest::Algorithm::Sha256);
            let (compressed, plain) = (stored.len() as u64, bootstrap.len() as u64);
            self.toc(
                toc::TOC_ENTRY_BOOTSTRAP,
                compressor,
                digest,
                offset,
                compressed,
                plain,
            )?;
            let table = self.toc.as_bytes().to_vec();
            self.file.write(&table)?;
            let header = self.header(toc::TOC_ENTRY_BLOB_TOC, table.len() as u64)?;
            let mut hash = Sha256::new();
            hash.update(&table);
            hash.update(header.as_bytes());
            blob.toc_digest = hash.finalize().into();
            blob.toc_bytes = u32::try_from(table.len() + header.as_bytes().len()).unwrap_or_default();
        }
        let bytes = self.file.position();
        let digest = self.file.finish()?;
        if let Some(index) = self.index {
            blob.id = index.original.id;
            (blob.meta_digest, blob.meta_bytes) = (digest, bytes);
        } else {
            blob.id = RafsDigest { data: digest }.to_string();
            blob.compressed_bytes = bytes;
        }
        Ok(blob)
    }

    fn blob(&self, id: String, features: BlobFeatures) -> Blob {
        Blob {
            id,
            features,
            compressor: match &self.index {
                Some(_) => compress::Algorithm::GZip,
                None => self.format.compressor,
            },
            digester: DIGESTER,
            chunk_bytes: self.format.chunk_size.bytes(),
            chunks: u32::try_from(self.chunks.len()).unwrap_or(u32::MAX),
            compressed_bytes: match &self.index {
                Some(index) => index.original.bytes,
                None => self.file.position(),
            },
            uncompressed_bytes: self.uncompressed_bytes,
            chunk_table: self.chunk_table,
            toc_digest: [0; 32],
            toc_bytes: 0,
            meta_digest: [0; 32],
            meta_bytes: 0,
            prefetch_bytes: 0,
        }
    }

    fn features(&self) -> BlobFeatures {
        let common = BlobFeatures::CAP_TAR_TOC | BlobFeatures::HAS_TAR_HEADER;
        let v6 = BlobFeatures::ALIGNED | BlobFeatures::HAS_TOC | BlobFeatures::INLINED_CHUNK_DIGEST;
        let original = BlobFeatures::ZRAN | BlobFeatures::SEPARATE | BlobFeatures::CHUNK_INFO_V2;
        match (self.format.fs_version, &self.index) {
            (FsVersion::V5, _) => common,
            (FsVersion::V6, None) => common | v6,
            (FsVersion::V6, Some(_)) => common | v6 | original,
        }
    }

    fn end_of_data(&mut self) -> Result<(), LayerError> {
        let bytes = self.data_bytes;
        let digest = RafsDigest {
            data: self.file.digest_so_far(),
        };
        self.header(toc::TOC_ENTRY_BLOB_RAW, bytes)?;
        if self.format.fs_version == FsVersion::V6 {
            let plain = self.uncompressed_bytes;
            self.toc(
                toc::TOC_ENTRY_BLOB_RAW,
                compress::Algorithm::None,
                digest,
                0,
                bytes,
                plain,
            )?;
        }
        Ok(())
    }

    fn chunk_table(&mut self) -> Result<(), LayerError> {
        let digests: Vec<u8> = self.chunks.iter().flat_map(|chunk| chunk.id).collect();
        let (placed, plain_digest) = match self.index.take() {
            Some(index) => {
                let written = self.index_table(&index);
                self.index = Some(index);
                written?
            }
            None => {
                let table = self.own_table();
                let plain = table.as_byte_slice();
                let (stored, compressor) = self.compressed(plain, self.format.compressor)?;
                let placed = ChunkTable {
                    compressor,
                    offset: self.file.position(),
                    compressed_bytes: stored.len() as u64,
                    uncompressed_bytes: plain.len() as u64,
                };
                self.file.write(&stored)?;
                (placed, sha256(plain))
            }
        };
        let compressor = placed.compressor;
        let mut header = BlobCompressionContextHeader::default();
        header.set_ci_compressor(compressor);
        header.set_ci_entries(u32::try_from(self.chunks.len()).unwrap_or(u32::MAX));
        header.set_ci_compressed_offset(placed.offset);
        header.set_ci_compressed_size(placed.compressed_bytes);
        header.set_ci_uncompressed_size(placed.uncompressed_bytes);
        header.set_aligned(true);
        header.set_inlined_fs_meta(true);
        header.set_inlined_chunk_digest(true);
        header.set_has_tar_header(true);
        header.set_has_toc(true);
        header.set_cap_tar_toc(true);
        if let Some(index) = &self.index {
            header.set_chunk_info_v2(true);
            header.set_separate_blob(true);
            header.set_ci_zran(true);
            header.set_ci_zran_count(index.contexts);
            header.set_ci_zran_offset(index.contexts_offset);
            header.set_ci_zran_size(placed.uncompressed_bytes - index.contexts_offset);
        }
        self.file.write(header.as_bytes())?;
        let header_bytes = header.as_bytes().len() as u64;
        self.header(toc::TOC_ENTRY_BLOB_META, placed.compressed_bytes + header_bytes)?;
        self.toc(
            toc::TOC_ENTRY_BLOB_META,
            compressor,
            plain_digest,
            placed.offset,
            placed.compressed_bytes,
            placed.uncompressed_bytes,
        )?;
        self.toc(
            toc::TOC_ENTRY_BLOB_META_HEADER,
            compress::Algorithm::None,
            sha256(header.as_bytes()),
            placed.offset + placed.compressed_bytes,
            header_bytes,
            header_bytes,
        )?;
        self.chunk_table = Some(placed);

        let offset = self.file.position();
        let bytes = digests.len() as u64;
        self.file.write(&digests)?;
        self.header(toc::TOC_ENTRY_BLOB_DIGEST, bytes)?;
        self.toc(
            toc::TOC_ENTRY_BLOB_DIGEST,
            compress::Algorithm::None,
            sha256(&digests),
            offset,
            bytes,
            bytes,
        )
    }

    /// Writes the table of an index, which may be too large for memory; where it is, and its digest as it was.
    fn index_table(&mut self, index: &Index) -> Result<(ChunkTable, RafsDigest), LayerError> {
        let path = self.file.path().to_owned();
        let failed = |source| super::chunks::failed(&path, source);
        let dir = path.parent().unwrap_or(Path::new("."));
        let packed = tempfile::tempfile_in(dir).map_err(failed)?;
        let digest = pack(index, &packed).map_err(failed)?;
        let uncompressed_bytes = index.table_bytes();
        let packed_bytes = packed.metadata().map_err(failed)?.len();
        let offset = self.file.position();
        // As it is where that isn't smaller, as nydus has it.
        let compressor = if packed_bytes < uncompressed_bytes {
            self.copy(&packed)?;
            compress::Algorithm::Zstd
        } else {
            self.copy(index.table().map_err(failed)?)?;
            compress::Algorithm::None
        };
        let placed = ChunkTable {
            compressor,
            offset,
            compressed_bytes: self.file.position() - offset,
            uncompressed_bytes,
        };
        Ok((placed, digest))
    }

    fn copy(&mut self, mut from: impl Read) -> Result<(), LayerError> {
        let mut buf = vec![0; COPY_BYTES];
        loop {
            let got = from
                .read(&mut buf)
                .map_err(|source| super::chunks::failed(self.file.path(), source))?;
            if got == 0 {
                return Ok(());
            }
            self.file.write(&buf[..got])?;
        }
    }

    /// The table of chunks of a blob that has its data itself.
    fn own_table(&self) -> BlobMetaChunkArray {
        let mut table = BlobMetaChunkArray::new_v1();
        for chunk in &self.chunks {
            table.add_v1(
                chunk.compressed_offset,
                chunk.compressed_size,
                chunk.uncompressed_offset,
                chunk.uncompressed_size,
            );
        }
        table
    }

    /// Compressed, or as it is where that isn't smaller.
    fn compressed<'d>(
        &self,
        data: &'d [u8],
        with: compress::Algorithm,
    ) -> Result<(std::borrow::Cow<'d, [u8]>, compress::Algorithm), LayerError> {
        let (stored, is_compressed) = compress::compress(data, with)
            .map_err(|source| super::chunks::failed(self.file.path(), source))?;
        let with = if is_compressed {
            with
        } else {
            compress::Algorithm::None
        };
        Ok((stored, with))
    }

    fn header(&mut self, name: &str, bytes: u64) -> Result<tar::Header, LayerError> {
        let mut header = tar::Header::new_gnu();
        header
            .set_path(name)
            .map_err(|source| super::chunks::failed(self.file.path(), source))?;
        header.set_entry_type(tar::EntryType::Regular);
        header.set_size(bytes);
        header.set_cksum();
        self.file.write(header.as_bytes())?;
        Ok(header)
    }

    fn toc(
        &mut self,
        name: &str,
        compressor: compress::Algorithm,
        digest: RafsDigest,
        offset: u64,
        compressed: u64,
        plain: u64,
    ) -> Result<(), LayerError> {
        self.toc
            .add(name, compressor, digest, offset, compressed, plain)
            .map(drop)
            .map_err(|source| super::chunks::failed(self.file.path(), source))
    }
}

fn sha256(bytes: &[u8]) -> RafsDigest {
    RafsDigest::from_buf(bytes, digest::Algorithm::Sha256)
}

/// Writes an index' table to `packed` as one frame of zstd, as nydus does; its digest as it was.
fn pack(index: &Index, mut packed: &File) -> io::Result<RafsDigest> {
    let mut hash = Sha256::new();
    let mut encoder = zstd::Encoder::new(packed, zstd::DEFAULT_COMPRESSION_LEVEL)?;
    encoder.set_pledged_src_size(Some(index.table_bytes()))?;
    let mut table = index.table()?;
    let mut buf = vec![0; COPY_BYTES];
    loop {
        let got = table.read(&mut buf)?;
        if got == 0 {
            break;
        }
        hash.update(&buf[..got]);
        encoder.write_all(&buf[..got])?;
    }
    encoder.finish()?;
    packed.seek(SeekFrom::Start(0))?;
    Ok(RafsDigest {
        data: hash.finalize().into(),
    })
}

/// Completes what the bootstrap inside a blob, which has the SHA-256 `digest`, could not say of the blob itself.
pub(crate) fn complete(own: &mut Blob, digest: [u8; 32], blob: &dyn BlobBytes) -> io::Result<()> {
    own.features.remove(BlobFeatures::INLINED_FS_META);
    let length = blob.length()?;
    if own.is_original() {
        (own.meta_digest, own.meta_bytes) = (digest, length);
    } else {
        own.id = RafsDigest { data: digest }.to_string();
        own.compressed_bytes = length;
    }
    let (name, bytes, start) = last_entry(blob, length)?;
    if name == toc::TOC_ENTRY_BLOB_TOC {
        let table = read_at(blob, start, bytes + HEADER_BYTES)?;
        own.toc_digest = Sha256::digest(&table).into();
        own.toc_bytes = u32::try_from(table.len()).unwrap_or(u32::MAX);
    }
    Ok(())
}

/// Reads the layer's bootstrap out of a blob: this crate's, nydus-image's or nydus-snapshotter's.
pub(crate) fn bootstrap_in(blob: &dyn BlobBytes) -> io::Result<Vec<u8>> {
    if let Some(bootstrap) = listed_bootstrap_in(blob)? {
        return Ok(bootstrap);
    }
    let (name, bytes, start) = last_entry(blob, blob.length()?)?;
    if name == toc::TOC_ENTRY_BOOTSTRAP {
        return read_at(blob, start, bytes);
    }
    Err(bad("there is no bootstrap at the end of the blob"))
}

/// The same of a blob with a table of contents, by whose digest the bootstrap is verified; none if it has no table.
pub(crate) fn listed_bootstrap_in(blob: &dyn BlobBytes) -> io::Result<Option<Vec<u8>>> {
    let (name, bytes, start) = last_entry(blob, blob.length()?)?;
    if name != toc::TOC_ENTRY_BLOB_TOC {
        return Ok(None);
    }
    let table = read_at(blob, start, bytes)?;
    for entry in table.chunks_exact(TOC_ENTRY_BYTES) {
        let number = |at: usize| {
            let mut bytes = [0; 8];
            bytes.copy_from_slice(&entry[at..at + 8]);
            u64::from_le_bytes(bytes)
        };
        let name = entry[8..24].split(|byte| *byte == 0).next().unwrap_or_default();
        if name != toc::TOC_ENTRY_BOOTSTRAP.as_bytes() {
            continue;
        }
        let (offset, compressed, plain) = (number(56), number(64), number(72));
        let stored = read_at(blob, offset, compressed)?;
        // The flags' bits are those of the compressors: 1 is none, 2 is zstd (toc.rs of nydus-storage).
        let bootstrap = match entry[0] {
            1 => stored,
            2 => {
                let mut bootstrap = Vec::new();
                let most = plain.min(MAX_BOOTSTRAP_BYTES);
                zstd::stream::read::Decoder::new(&stored[..])?
                    .take(most)
                    .read_to_end(&mut bootstrap)?;
                bootstrap
            }
            _ => return Err(bad("the bootstrap is compressed in an unknown way")),
        };
        if Sha256::digest(&bootstrap)[..] != entry[24..56] {
            return Err(bad(
                "the bootstrap is not the one in the blob's table of contents",
            ));
        }
        return Ok(Some(bootstrap));
    }
    Err(bad("the blob's table of contents has no bootstrap"))
}

fn bad(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what.to_owned())
}

/// Larger than that of any image there is; nobody gets to have us allocate more.
const MAX_BOOTSTRAP_BYTES: u64 = 1 << 30;

/// Name, length and start of what ends before `end` with its header.
fn last_entry(blob: &dyn BlobBytes, end: u64) -> io::Result<(String, u64, u64)> {
    let bad = || bad("it does not end like a nydus blob");
    let at = end.checked_sub(HEADER_BYTES).ok_or_else(bad)?;
    let mut block = [0; 512];
    blob.read_exact_at(&mut block, at)?;
    let header = tar::Header::from_byte_slice(&block);
    let bytes = header.entry_size().map_err(|_| bad())?;
    let name = String::from_utf8_lossy(&header.path_bytes()).into_owned();
    Ok((name, bytes, at.checked_sub(bytes).ok_or_else(bad)?))
}

fn read_at(blob: &dyn BlobBytes, offset: u64, bytes: u64) -> io::Result<Vec<u8>> {
    let length = blob.length()?;
    if bytes > MAX_BOOTSTRAP_BYTES || offset.checked_add(bytes).is_none_or(|end| end > length) {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    let mut data = vec![0; usize::try_from(bytes).unwrap_or_default()];
    blob.read_exact_at(&mut data, offset)?;
    Ok(data)
}
