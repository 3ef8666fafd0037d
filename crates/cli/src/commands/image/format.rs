//! The options of commands that make RAFS.

use clap::Args;
use nydusbox_image::{ChunkSize, Compressor, FsVersion, RafsFormat};

use crate::commands::size::Size;
use crate::error::Failure;

#[derive(Debug, Args)]
pub(super) struct FormatArgs {
    /// Version of the RAFS format: 5 or 6
    #[arg(long, value_name = "VERSION", default_value = "6")]
    fs_version: FsVersion,
    /// How chunks are compressed: zstd, lz4_block or none
    #[arg(long, value_name = "NAME", default_value = "zstd")]
    compressor: Compressor,
    /// Size of a chunk, a power of two from 4K to 16M; what is read is fetched in chunks
    #[arg(long, value_name = "SIZE", default_value = "1M")]
    chunk_size: Size,
}

impl FormatArgs {
    pub(super) fn format(&self) -> Result<RafsFormat, Failure> {
        let chunk_size =
            ChunkSize::new(self.chunk_size.bytes()).map_err(|e| Failure::new("use this --chunk-size", &e))?;
        Ok(RafsFormat::default()
            .fs_version(self.fs_version)
            .compressor(self.compressor)
            .chunk_size(chunk_size))
    }
}
