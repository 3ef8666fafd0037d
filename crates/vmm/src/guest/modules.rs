//! Kernel modules: where they are, what they need, and in which order they load.
//!
//! `depmod` writes `modules.dep` when a kernel package is installed; a package that was only unpacked has none, and
//! each module's own `.modinfo` says the same. The order is pure ([`order`]); the rest of the file reads.

use std::collections::{HashMap, HashSet};
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use super::elf;

/// Why the modules can't be loaded.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ModuleError {
    /// Neither a file nor built in.
    #[error("module {module} is neither in {dir:?} nor built into the kernel")]
    Missing {
        /// The module.
        module: String,
        /// The directory searched.
        dir: PathBuf,
    },
    /// Compressed in a way the guest's `insmod` does not undo.
    #[error("module {module} is compressed ({path:?}); only plain .ko files can be loaded")]
    Compressed {
        /// The module.
        module: String,
        /// Its file.
        path: PathBuf,
    },
    /// Not a module.
    #[error("module {module} ({path:?}) has no .modinfo section")]
    NotAModule {
        /// The module.
        module: String,
        /// Its file.
        path: PathBuf,
    },
    /// Two modules need each other.
    #[error("module {module} depends on itself")]
    Cycle {
        /// A module on the cycle.
        module: String,
    },
    /// A file or directory can't be read.
    #[error("cannot read {path:?}")]
    Read {
        /// The file or directory.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
}

/// A module and its file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ModuleFile {
    /// The name the kernel shows, with underscores.
    pub name: String,
    /// The `.ko` file.
    pub path: PathBuf,
}

/// Resolves `wanted` in the modules directory `dir` (`…/lib/modules/<version>`).
pub(super) fn load_order(dir: &Path, wanted: &[&str]) -> Result<Vec<ModuleFile>, ModuleError> {
    let builtin: HashSet<String> = match read_if_there(&dir.join("modules.builtin"))? {
        Some(list) => list.lines().map(module_name).collect(),
        None => HashSet::new(),
    };
    let mut files = HashMap::new();
    collect_files(dir, &mut files)?;
    let listed = read_if_there(&dir.join("modules.dep"))?.map(|text| parse_modules_dep(&text));

    let names = order(wanted, |module| {
        if builtin.contains(module) {
            return Ok(None);
        }
        let path = files.get(module).ok_or_else(|| ModuleError::Missing {
            module: module.to_owned(),
            dir: dir.to_owned(),
        })?;
        if path.extension().is_none_or(|extension| extension != "ko") {
            return Err(ModuleError::Compressed {
                module: module.to_owned(),
                path: path.clone(),
            });
        }
        match listed.as_ref().and_then(|listed| listed.get(module)) {
            Some(needs) => Ok(Some(needs.clone())),
            None => modinfo_depends(module, path).map(Some),
        }
    })?;
    Ok(names
        .into_iter()
        .filter_map(|name| files.remove(&name).map(|path| ModuleFile { name, path }))
        .collect())
}

/// `wanted` and everything it needs, each after what it needs. `needs` answers `None` for what is built in.
fn order(
    wanted: &[&str],
    needs: impl Fn(&str) -> Result<Option<Vec<String>>, ModuleError>,
) -> Result<Vec<String>, ModuleError> {
    enum Step {
        Enter(String),
        Leave(String),
    }
    let mut ordered = Vec::new();
    let mut done = HashSet::new();
    let mut open = HashSet::new();
    let mut steps: Vec<Step> = wanted
        .iter()
        .rev()
        .map(|&name| Step::Enter(name.to_owned()))
        .collect();
    while let Some(step) = steps.pop() {
        match step {
            Step::Enter(module) if done.contains(&module) => {}
            Step::Enter(module) => {
                let Some(needed) = needs(&module)? else {
                    done.insert(module);
                    continue;
                };
                if !open.insert(module.clone()) {
                    return Err(ModuleError::Cycle { module });
                }
                steps.push(Step::Leave(module));
                steps.extend(needed.into_iter().rev().map(Step::Enter));
            }
            Step::Leave(module) => {
                open.remove(&module);
                done.insert(module.clone());
                ordered.push(module);
            }
        }
    }
    Ok(ordered)
}

/// The name of a module from its file: without directories and `.ko…`, and with underscores as the kernel has it.
fn module_name(path: &str) -> String {
    let file = path.rsplit('/').next().unwrap_or(path);
    let stem = file.find(".ko").map_or(file, |end| &file[..end]);
    stem.replace('-', "_")
}

fn parse_modules_dep(text: &str) -> HashMap<String, Vec<String>> {
    text.lines()
        .filter_map(|line| line.split_once(':'))
        .map(|(module, needs)| {
            (
                module_name(module),
                needs.split_whitespace().map(module_name).collect(),
            )
        })
        .collect()
}

fn parse_modinfo(modinfo: &[u8]) -> Vec<String> {
    modinfo
        .split(|&b| b == 0)
        .find_map(|field| field.strip_prefix(b"depends="))
        .map(|list| {
            String::from_utf8_lossy(list)
                .split(',')
                .filter(|name| !name.is_empty())
                .map(module_name)
                .collect()
        })
        .unwrap_or_default()
}

fn modinfo_depends(module: &str, path: &Path) -> Result<Vec<String>, ModuleError> {
    let file = fs::read(path).map_err(|source| ModuleError::Read {
        path: path.to_owned(),
        source,
    })?;
    match elf::section(&file, b".modinfo") {
        Some(modinfo) => Ok(parse_modinfo(modinfo)),
        None => Err(ModuleError::NotAModule {
            module: module.to_owned(),
            path: path.to_owned(),
        }),
    }
}

fn read_if_there(path: &Path) -> Result<Option<String>, ModuleError> {
    match fs::read_to_string(path) {
        Ok(text) => Ok(Some(text)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(source) => Err(ModuleError::Read {
            path: path.to_owned(),
            source,
        }),
    }
}

/// Every `*.ko`, `*.ko.xz`, `*.ko.zst`… below `dir`. Symbolic links (`build`, `source`) are not followed.
fn collect_files(dir: &Path, files: &mut HashMap<String, PathBuf>) -> Result<(), ModuleError> {
    let unreadable = |source| ModuleError::Read {
        path: dir.to_owned(),
        source,
    };
    for entry in fs::read_dir(dir).map_err(unreadable)? {
        let entry = entry.map_err(unreadable)?;
        let kind = entry.file_type().map_err(unreadable)?;
        let path = entry.path();
        if kind.is_dir() {
            collect_files(&path, files)?;
        } else if kind.is_file()
            && let Some(name) = entry.file_name().to_str()
            && (name.ends_with(".ko") || name.contains(".ko."))
        {
            files.insert(module_name(name), path);
        }
    }
    Ok(())
}

#[cfg(test)]
#[path = "modules/tests.rs"]
mod tests;
