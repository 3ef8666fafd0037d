//! Before a daemon is started with arguments of the caller's: would it take them?
//!
//! What the program says of its options and its version is read once per file (`probe`), understood (`help`), and decides which
//! arguments are passed, translated or refused (`fit`, pure). A start without arguments of the caller's needs none
//! of this and pays nothing for it; the embedded daemon's options are known without asking. What is always passed
//! is decided in [`crate::command`].

mod fit;
mod help;
mod probe;

use crate::error::StartCause;
use crate::program::{Program, ProgramKind};

pub use fit::ArgumentError;
pub(crate) use fit::{Fitted, Translation};
pub use probe::PreflightError;

/// The caller's arguments as the program takes them.
pub(crate) async fn arguments(program: &Program) -> Result<Fitted, StartCause> {
    if program.args().is_empty() {
        return Ok(Fitted::default());
    }
    let fitted = match program.kind() {
        ProgramKind::Embedded => fit::fit(program.kind(), program.args(), &help::Options::embedded()),
        ProgramKind::Stock => {
            let options = probe::options(program).await?;
            fit::fit(program.kind(), program.args(), &options)
        }
    }?;
    Ok(fitted)
}
