//! Layers of an image, gzipped: what one archive of a root file system has more than another, and one of any size.
//!
//! Entries are copied as they stand in the archive, with everything that belongs to them.

use std::collections::{BTreeSet, HashMap};
use std::fs::File;
use std::io::{self, BufReader, BufWriter, Read, Seek, SeekFrom, Write};
use std::ops::Range;
use std::path::{Path, PathBuf};

use flate2::Compression;
use flate2::write::GzEncoder;
use sha2::{Digest, Sha256};
use tar::{Archive, Builder, Header};

const BLOCK: u64 = 512;
/// Two empty blocks.
const END: [u8; 1024] = [0; 1024];
/// What container engines take, too. The lowest ones make blocks that are too large for an index.
const LEVEL: u32 = 6;

/// A layer in a file.
#[derive(Debug, Clone)]
pub(super) struct Layer {
    pub(super) file: PathBuf,
    /// SHA-256 of the file, in hexadecimal.
    pub(super) digest: String,
    /// Its length in bytes.
    pub(super) bytes: u64,
    /// SHA-256 of the archive in it, in hexadecimal.
    pub(super) diff_id: String,
    /// The archive's length in bytes.
    pub(super) archive_bytes: u64,
}

/// An entry of an archive.
struct Found {
    path: Vec<u8>,
    is_dir: bool,
    /// Of everything that makes a difference.
    digest: [u8; 32],
    /// Where it lies in the archive, with the headers that belong to it.
    range: Range<u64>,
}

/// Writes to `out` what `upper` has and `lower` has not, or has otherwise, with the directories it is in: as container
/// engines do.
pub(super) fn difference(lower: Option<&Path>, upper: &Path, out: &Path) -> io::Result<Layer> {
    let known: HashMap<Vec<u8>, [u8; 32]> = match lower {
        Some(lower) => entries(lower)?.into_iter().map(|e| (e.path, e.digest)).collect(),
        None => HashMap::new(),
    };
    let all = entries(upper)?;
    let is_new = |entry: &&Found| known.get(&entry.path) != Some(&entry.digest);
    let above: BTreeSet<&[u8]> = all
        .iter()
        .filter(is_new)
        .flat_map(|entry| ancestors(&entry.path))
        .collect();
    let mut archive = File::open(upper)?;
    let mut writer = LayerWriter::create(out)?;
    for entry in &all {
        if is_new(&entry) || (entry.is_dir && above.contains(trimmed(&entry.path))) {
            archive.seek(SeekFrom::Start(entry.range.start))?;
            let length = entry.range.end - entry.range.start;
            io::copy(&mut (&mut archive).take(length), &mut writer)?;
        }
    }
    writer.write_all(&END)?;
    writer.finish()
}

/// Every directory that a path is in, without the slash at its end.
fn ancestors(path: &[u8]) -> impl Iterator<Item = &[u8]> {
    let path = trimmed(path);
    let slashes = path.iter().enumerate().filter(|(_, byte)| **byte == b'/');
    slashes.map(move |(at, _)| &path[..at])
}

fn trimmed(path: &[u8]) -> &[u8] {
    path.strip_suffix(b"/").unwrap_or(path)
}

fn entries(archive: &Path) -> io::Result<Vec<Found>> {
    let mut archive = Archive::new(BufReader::with_capacity(1 << 20, File::open(archive)?));
    let mut all = Vec::new();
    let mut end = 0;
    for entry in archive.entries()? {
        let mut entry = entry?;
        let header = entry.header().clone();
        let is_dir = header.entry_type().is_dir();
        let mut digest = Sha256::new();
        let links = entry.link_name_bytes().map(|name| name.into_owned());
        digest.update(format!(
            "{:?} {} {} {} {links:?}",
            header.entry_type(),
            header.mode()?,
            header.uid()?,
            header.gid()?
        ));
        // A directory's time changes with what is in it.
        if !is_dir {
            digest.update(header.mtime()?.to_le_bytes());
        }
        io::copy(&mut entry, &mut digest)?;
        let begin = end;
        end = entry.raw_file_position() + entry.size().next_multiple_of(BLOCK);
        all.push(Found {
            path: entry.path_bytes().into_owned(),
            is_dir,
            digest: digest.finalize().into(),
            range: begin..end,
        });
    }
    Ok(all)
}

/// Writes a layer of about `bytes` of content to `out`: half of it, in large files, can't be compressed; the other
/// half, in small ones, is text.
pub(super) fn large(bytes: u64, out: &Path) -> io::Result<Layer> {
    const MOST: u64 = 48 << 20;
    const TEXT: usize = 64 << 10;
    let mut builder = Builder::new(LayerWriter::create(out)?);
    let mut random = Random(0x9e37_79b9_7f4a_7c15);
    let words: Vec<String> = (0..4096).map(|n: u32| format!("{:x} ", n * n)).collect();
    let half = bytes.div_ceil(2).min(MOST);
    let mut noise = vec![0; usize::try_from(half).unwrap_or_default()];
    for number in 0..bytes.div_ceil(2 * half) {
        random.fill(&mut noise);
        append(&mut builder, &format!("noise/{number}"), &noise)?;
        for small in 0..noise.len().div_ceil(TEXT) {
            let text = random.text(&words, TEXT);
            append(&mut builder, &format!("text/{number}/{small}"), &text)?;
        }
    }
    builder.into_inner()?.finish()
}

fn append(builder: &mut Builder<LayerWriter>, path: &str, content: &[u8]) -> io::Result<()> {
    let mut header = Header::new_gnu();
    header.set_size(content.len() as u64);
    header.set_mode(0o644);
    header.set_mtime(1_700_000_000);
    builder.append_data(&mut header, path, content)
}

/// xorshift64*.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    fn fill(&mut self, buffer: &mut [u8]) {
        for part in buffer.chunks_mut(8) {
            part.copy_from_slice(&self.next().to_le_bytes()[..part.len()]);
        }
    }

    /// Words, which compress to about a third.
    fn text(&mut self, words: &[String], bytes: usize) -> Vec<u8> {
        let mut text = Vec::with_capacity(bytes + 8);
        while text.len() < bytes {
            let word = usize::try_from(self.next() >> 52).unwrap_or_default();
            text.extend_from_slice(words[word % words.len()].as_bytes());
        }
        text.truncate(bytes);
        text
    }
}

/// Compresses what is written, and knows its digest before and after that.
struct LayerWriter {
    gzip: GzEncoder<Hashed>,
    diff: Sha256,
    archive_bytes: u64,
    path: PathBuf,
}

impl LayerWriter {
    fn create(path: &Path) -> io::Result<Self> {
        let out = Hashed {
            file: BufWriter::with_capacity(1 << 20, File::create(path)?),
            hash: Sha256::new(),
            bytes: 0,
        };
        Ok(Self {
            gzip: GzEncoder::new(out, Compression::new(LEVEL)),
            diff: Sha256::new(),
            archive_bytes: 0,
            path: path.to_owned(),
        })
    }

    fn finish(self) -> io::Result<Layer> {
        let mut out = self.gzip.finish()?;
        out.flush()?;
        Ok(Layer {
            file: self.path,
            digest: format!("{:x}", out.hash.finalize()),
            bytes: out.bytes,
            diff_id: format!("{:x}", self.diff.finalize()),
            archive_bytes: self.archive_bytes,
        })
    }
}

impl Write for LayerWriter {
    fn write(&mut self, data: &[u8]) -> io::Result<usize> {
        self.gzip.write_all(data)?;
        self.diff.update(data);
        self.archive_bytes += data.len() as u64;
        Ok(data.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.gzip.flush()
    }
}

struct Hashed {
    file: BufWriter<File>,
    hash: Sha256,
    bytes: u64,
}

impl Write for Hashed {
    fn write(&mut self, data: &[u8]) -> io::Result<usize> {
        self.file.write_all(data)?;
        self.hash.update(data);
        self.bytes += data.len() as u64;
        Ok(data.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}
