//! `nydusbox completions` and `nydusbox man`: what clap knows about the command line, for shells and for man.

use std::io;
use std::path::{Path, PathBuf};

use clap::Args;
use clap_complete::Shell;

use super::output;
use crate::error::Failure;

#[derive(Debug, Args)]
pub(crate) struct CompletionsArgs {
    /// Shell the completions are for
    #[arg(value_enum)]
    shell: Shell,
}

#[derive(Debug, Args)]
pub(crate) struct ManArgs {
    /// Directory for the pages of all commands; without it, the page of `nydusbox` is printed
    dir: Option<PathBuf>,
}

pub(crate) fn completions(args: &CompletionsArgs, mut command: clap::Command) -> Result<(), Failure> {
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut command, "nydusbox", &mut script);
    print(&script)
}

pub(crate) fn man(args: &ManArgs, command: clap::Command) -> Result<(), Failure> {
    match &args.dir {
        Some(dir) => {
            let written = std::fs::create_dir_all(dir).and_then(|()| clap_mangen::generate_to(command, dir));
            written.map_err(|e| Failure::new(&format!("write man pages to {}", dir.display()), &e))?;
            print_dir(dir)
        }
        None => {
            let mut page = Vec::new();
            clap_mangen::Man::new(command)
                .render(&mut page)
                .map_err(|e: io::Error| Failure::new("write a man page", &e))?;
            print(&page)
        }
    }
}

fn print(bytes: &[u8]) -> Result<(), Failure> {
    output::line(String::from_utf8_lossy(bytes).trim_end()).map(drop)
}

fn print_dir(dir: &Path) -> Result<(), Failure> {
    output::line(&format!("wrote the pages to {}", dir.display())).map(drop)
}
