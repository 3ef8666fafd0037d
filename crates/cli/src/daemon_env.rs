//! What a daemon finds in its environment, so that it reaches registries as this program does.
//!
//! It inherits the environment, proxy variables included. Two things are added: what this machine itself serves is
//! not asked for through a proxy, and certificates that were given beside the system's are trusted. Where this process
//! serves an image itself, both are added to its own.

use std::ffi::OsString;
use std::fs::File;
use std::io::{self, Write as _};
use std::os::fd::AsRawFd;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use nydusbox::Program;
use rustix::fs::{MemfdFlags, memfd_create};

use crate::error::Failure;

/// What is asked for through no proxy, in nydus' client.
const NO_PROXY: &str = "NO_PROXY";
/// Names the file with the certificates that nydus' TLS (OpenSSL) trusts.
const CERT_FILE: &str = "SSL_CERT_FILE";
/// What is never asked for through a proxy, as in Go's tools.
const HERE: &str = "localhost,127.0.0.0/8,::1";

/// The same program, which asks this machine's servers itself.
pub(crate) fn beside_proxies(program: Program) -> Program {
    match no_proxy(&|name| std::env::var(name).ok()) {
        Some(list) => program.with_env(NO_PROXY, list),
        None => program,
    }
}

/// Begins this process anew with both in its environment, which nydus reads once and for all; returns if they are there
/// already. For the beginning of a command that serves an image itself.
///
/// # Errors
/// If a file cannot be read, or the process not be begun anew.
pub(crate) fn have_here(ca_files: &[PathBuf]) -> Result<(), Failure> {
    let mut command = Command::new("/proc/self/exe");
    let mut is_new = false;
    if let Some(list) = no_proxy(&|name| std::env::var(name).ok())
        && !std::env::var(NO_PROXY).is_ok_and(|given| given.ends_with(HERE))
    {
        command.env(NO_PROXY, list);
        is_new = true;
    }
    let given = certificates(ca_files)?;
    let trusted = std::env::var_os(CERT_FILE).and_then(|file| std::fs::read(file).ok());
    let mut inherited = None;
    if !String::from_utf8_lossy(&trusted.unwrap_or_default()).contains(&given) {
        let file = inherited.insert(in_memory(&with_system_certificates(ca_files)?)?);
        command.env(CERT_FILE, format!("/proc/self/fd/{}", file.as_raw_fd()));
        is_new = true;
    }
    if !is_new {
        return Ok(());
    }
    let mut args = std::env::args_os();
    if let Some(name) = args.next() {
        command.arg0(name);
    }
    Err(Failure::new(
        "begin with other certificates",
        &command.args(args).exec(),
    ))
}

/// A file that the next program has open, too, and nobody else.
fn in_memory(text: &str) -> Result<File, Failure> {
    let written = memfd_create("certificates", MemfdFlags::empty())
        .map_err(io::Error::from)
        .and_then(|fd| {
            let mut file = File::from(fd);
            file.write_all(text.as_bytes()).map(|()| file)
        });
    written.map_err(|e| Failure::new("keep certificates in memory", &e))
}

/// The same program, which trusts the certificates in `file`. It must be there before anything is mounted.
pub(crate) fn trusting(program: Program, file: &Path) -> Program {
    program.with_env(CERT_FILE, file)
}

/// The list of hosts without a proxy; `None` if there is no proxy.
fn no_proxy(variable: &dyn Fn(&str) -> Option<String>) -> Option<OsString> {
    let proxies = ["HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"];
    let is_set = |name: &str| variable(name).or_else(|| variable(&name.to_lowercase()));
    proxies.iter().find_map(|name| is_set(name))?;
    // nydus' client reads the one in capitals, if it is there.
    let given = is_set("NO_PROXY").unwrap_or_default();
    Some(match given.is_empty() {
        true => HERE.into(),
        false => format!("{given},{HERE}").into(),
    })
}

/// The file with the system's certificates, where nydus' TLS would look for it.
pub(crate) fn system_certificates() -> Option<PathBuf> {
    openssl_probe::probe().cert_file
}

/// The system's certificates and those in `files`, in PEM.
pub(crate) fn with_system_certificates(files: &[PathBuf]) -> Result<String, Failure> {
    let system = system_certificates();
    let mut bundle = String::new();
    for file in system.iter().chain(files) {
        bundle.push_str(&read(file)?);
    }
    Ok(bundle)
}

/// The certificates in `files`, in PEM.
pub(crate) fn certificates(files: &[PathBuf]) -> Result<String, Failure> {
    files.iter().map(|file| read(file)).collect()
}

fn read(file: &Path) -> Result<String, Failure> {
    let text = std::fs::read(file).map(|bytes| String::from_utf8_lossy(&bytes).into_owned());
    let failed = |e: io::Error| Failure::new(&format!("read the certificates in {}", file.display()), &e);
    // The last line of one must not run into the first of the next.
    text.map(|text| text + "\n").map_err(failed)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn list(set: &[(&str, &str)]) -> Option<OsString> {
        let variable = |name: &str| set.iter().find(|(n, _)| *n == name).map(|(_, v)| (*v).to_owned());
        no_proxy(&variable)
    }

    #[test]
    fn this_machine_is_asked_itself_whatever_else_is_not_asked_through_the_proxy() {
        assert_eq!(list(&[]), None);
        assert_eq!(list(&[("NO_PROXY", "a")]), None);
        assert_eq!(list(&[("https_proxy", "http://p")]), Some(HERE.into()));
        let both = list(&[("HTTP_PROXY", "http://p"), ("no_proxy", "b.example")]);
        assert_eq!(both, Some(format!("b.example,{HERE}").into()));
        let capitals = list(&[("ALL_PROXY", "http://p"), ("no_proxy", "b"), ("NO_PROXY", "a")]);
        assert_eq!(capitals, Some(format!("a,{HERE}").into()));
    }
}
