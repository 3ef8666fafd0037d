//! What is needed to begin unpacking a gzipped layer in the middle, in many places: contexts, of which each has a
//! dictionary of up to 32 KiB.
//!
//! nydus' generator keeps all dictionaries in memory, which for a layer of 4 GB are 130 MB and more. Here it has one
//! context at a time, as if each were the first; dictionaries go to a file that has no name.

use std::fmt;
use std::fs::File;
use std::io::{self, BufWriter, Read, Seek, SeekFrom, Write};
use std::path::Path;

use nydus_storage::RAFS_DEFAULT_CHUNK_SIZE;
use nydus_utils::compress::zlib_random::{ZranGenerator, ZranReader};

/// What is needed to unpack a stretch of a layer, as it is in the table; nydus' `ZranInflateContext`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Context {
    /// Where the stretch is in the layer.
    pub(crate) in_offset: u64,
    pub(crate) in_bytes: u32,
    /// Where it is in the archive.
    pub(crate) out_offset: u64,
    pub(crate) out_bytes: u32,
    pub(crate) dictionary_offset: u64,
    pub(crate) dictionary_bytes: u32,
    pub(crate) byte: u8,
    pub(crate) bits: u8,
}

impl Context {
    /// In the table, in bytes.
    pub(crate) const BYTES: usize = 40;

    /// The context of this number among `contexts`.
    pub(crate) fn at(contexts: &[u8], number: u32) -> Option<Self> {
        let begin = usize::try_from(number).ok()?.checked_mul(Self::BYTES)?;
        let record = contexts.get(begin..begin.checked_add(Self::BYTES)?)?;
        let long = |at: usize| record[at..at + 8].try_into().map(u64::from_le_bytes).ok();
        let short = |at: usize| record[at..at + 4].try_into().map(u32::from_le_bytes).ok();
        Some(Self {
            in_offset: long(0)?,
            out_offset: long(8)?,
            dictionary_offset: long(16)?,
            in_bytes: short(24)?,
            out_bytes: short(28)?,
            dictionary_bytes: short(32)?,
            byte: record[36],
            bits: record[37],
        })
    }

    fn write(&self, table: &mut Vec<u8>) {
        for long in [self.in_offset, self.out_offset, self.dictionary_offset] {
            table.extend(long.to_le_bytes());
        }
        for short in [self.in_bytes, self.out_bytes, self.dictionary_bytes] {
            table.extend(short.to_le_bytes());
        }
        table.extend([self.byte, self.bits, 0, 0]);
    }
}

/// Where a piece of the archive is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Stretch {
    /// The number of its context, and where in what that unpacks it begins.
    pub(super) context: u32,
    pub(super) offset: u32,
    pub(super) bytes: u32,
    /// Where it is in the layer, up to a block of deflate.
    pub(super) in_offset: u64,
    pub(super) in_bytes: u32,
}

/// All contexts of a layer.
#[derive(Debug)]
pub(crate) struct Contexts {
    pub(crate) count: u32,
    /// As in the table.
    pub(crate) records: Vec<u8>,
    /// The dictionaries, one after the other.
    pub(crate) dictionaries: File,
    pub(crate) dictionary_bytes: u64,
}

/// Makes contexts while a layer is unpacked.
pub(super) struct ContextWriter<R> {
    reader: ZranReader<R>,
    /// Of the context that is not complete, if there is one.
    generator: ZranGenerator<R>,
    count: u32,
    records: Vec<u8>,
    dictionaries: BufWriter<File>,
    dictionary_bytes: u64,
}

impl<R: Read> ContextWriter<R> {
    /// Contexts of what `reader` unpacks; `dir` is for dictionaries.
    pub(super) fn new(reader: &ZranReader<R>, dir: &Path) -> io::Result<Self> {
        Ok(Self {
            reader: reader.clone(),
            generator: generator(reader),
            count: 0,
            records: Vec::new(),
            dictionaries: BufWriter::new(tempfile::tempfile_in(dir)?),
            dictionary_bytes: 0,
        })
    }

    /// Before so many bytes are read of the archive.
    pub(super) fn begin(&mut self, bytes: u64) -> io::Result<()> {
        if self.generator.begin_read(bytes)? > 0 {
            // It has begun another context. A new generator begins the same, as nothing was read meanwhile.
            self.complete()?;
            self.generator = generator(&self.reader);
            self.generator.begin_read(bytes)?;
        }
        Ok(())
    }

    /// After they were read: where they are.
    pub(super) fn end(&mut self) -> io::Result<Stretch> {
        let read = self.generator.end_read()?;
        Ok(Stretch {
            context: self.count,
            offset: read.ci_offset,
            bytes: read.ci_len,
            in_offset: read.in_pos,
            in_bytes: read.in_len,
        })
    }

    /// The first of the generator's contexts is done with.
    fn complete(&mut self) -> io::Result<()> {
        let Some(context) = self.generator.get_compression_ctx_array().first() else {
            return Ok(());
        };
        self.dictionaries.write_all(&context.dict)?;
        let record = Context {
            in_offset: context.in_offset,
            in_bytes: context.in_len,
            out_offset: context.out_offset,
            out_bytes: context.out_len,
            dictionary_offset: self.dictionary_bytes,
            dictionary_bytes: u32::try_from(context.dict.len()).unwrap_or(u32::MAX),
            byte: context.ctx_byte,
            bits: context.ctx_bits,
        };
        record.write(&mut self.records);
        self.dictionary_bytes += context.dict.len() as u64;
        self.count += 1;
        Ok(())
    }

    pub(super) fn finish(mut self) -> io::Result<Contexts> {
        self.complete()?;
        let mut dictionaries = self
            .dictionaries
            .into_inner()
            .map_err(io::IntoInnerError::into_error)?;
        dictionaries.seek(SeekFrom::Start(0))?;
        Ok(Contexts {
            count: self.count,
            records: self.records,
            dictionaries,
            dictionary_bytes: self.dictionary_bytes,
        })
    }
}

impl<R> fmt::Debug for ContextWriter<R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ContextWriter")
            .field("count", &self.count)
            .finish_non_exhaustive()
    }
}

/// With nydus' own bounds, those of its `ZranContextGenerator`.
fn generator<R: Read>(reader: &ZranReader<R>) -> ZranGenerator<R> {
    let mut generator = ZranGenerator::new(reader.clone());
    generator.set_min_compressed_size(RAFS_DEFAULT_CHUNK_SIZE / 2);
    generator.set_max_compressed_size(RAFS_DEFAULT_CHUNK_SIZE);
    generator.set_max_uncompressed_size(RAFS_DEFAULT_CHUNK_SIZE * 2);
    generator
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a panic is how a test fails")]

    use flate2::Compression;
    use flate2::write::GzEncoder;
    use nydus_storage::meta::{BlobMetaChunkInfo, ZranContextGenerator};
    use proptest::collection::vec;
    use proptest::prelude::*;

    use super::*;

    /// Some of it compresses well and some doesn't, in members of gzip.
    fn packed(members: &[(u64, usize)]) -> Vec<u8> {
        let mut packed = Vec::new();
        for (seed, bytes) in members {
            let mut state = seed | 1;
            let content: Vec<u8> = (0..*bytes)
                .map(|at| {
                    state ^= state << 13;
                    state ^= state >> 7;
                    state ^= state << 17;
                    let noise = u8::try_from(state & 0xff).unwrap();
                    if (at >> 18) % 3 == 0 { noise & 1 } else { noise }
                })
                .collect();
            let mut member = GzEncoder::new(Vec::new(), Compression::new(1));
            member.write_all(&content).unwrap();
            packed.extend(member.finish().unwrap());
        }
        packed
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(12))]

        /// What nydus makes of the same reads, byte for byte.
        #[test]
        fn contexts_are_those_of_nydus(
            members in vec((any::<u64>(), 1_usize..(5 << 20)), 1..3),
            reads in vec((0_usize..300_000, 1_usize..(1 << 20)), 1..24),
        ) {
            let packed = packed(&members);
            let mut nydus = ZranContextGenerator::new(&*packed).unwrap();
            let mut reader = nydus.reader();
            let mut expected = Vec::new();
            let own_reader = ZranReader::new(&*packed).unwrap();
            let dir = tempfile::tempdir().unwrap();
            let mut own = ContextWriter::new(&own_reader, dir.path()).unwrap();
            let mut found = Vec::new();
            let mut unpacked = own_reader.clone();
            let total: usize = members.iter().map(|(_, bytes)| bytes).sum();
            let mut left = total;
            for (between, bytes) in reads {
                if between + bytes > left {
                    break;
                }
                left -= between + bytes;
                let mut buf = vec![0; between + bytes];
                reader.read_exact(&mut buf[..between]).unwrap();
                nydus.start_chunk(bytes as u64).unwrap();
                reader.read_exact(&mut buf[between..]).unwrap();
                let info = nydus.finish_chunk().unwrap();
                expected.push((
                    info.get_zran_index().unwrap(),
                    info.get_zran_offset().unwrap(),
                    info.compressed_offset(),
                    info.compressed_size(),
                    info.uncompressed_size(),
                ));
                unpacked.read_exact(&mut buf[..between]).unwrap();
                own.begin(bytes as u64).unwrap();
                unpacked.read_exact(&mut buf[between..]).unwrap();
                let at = own.end().unwrap();
                found.push((at.context, at.offset, at.in_offset, at.in_bytes, at.bytes));
            }
            prop_assert_eq!(found, expected);
            let (table, count) = nydus.to_vec().unwrap();
            let mut contexts = own.finish().unwrap();
            let mut own_table = contexts.records;
            contexts.dictionaries.read_to_end(&mut own_table).unwrap();
            prop_assert_eq!(contexts.count, count);
            prop_assert!(own_table == table);
            // The file has no name.
            prop_assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
        }
    }
}
