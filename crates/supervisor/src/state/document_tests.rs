//! The document goes through its bytes unchanged, and any bytes are either one or refused.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt;

use nydusbox_protocol::{ContainerId, MountCommand};
use proptest::prelude::*;

use super::*;
use crate::binds::{Inode, Made, Mount};

fn os_text() -> impl Strategy<Value = OsText> {
    proptest::collection::vec(any::<u8>(), 0..20).prop_map(|bytes| OsText(OsString::from_vec(bytes)))
}

fn mount() -> impl Strategy<Value = MountRecord> {
    (
        "[a-z]{1,8}",
        ".{0,20}",
        any::<bool>(),
        proptest::option::of(proptest::collection::vec(".{0,8}", 0..3)),
        any::<Option<u8>>(),
        any::<[bool; 2]>(),
    )
        .prop_map(|(at, text, rafs, prefetch, slot, [unplaced, replaced])| {
            let mut command = match rafs {
                true => MountCommand::rafs(text.clone(), text),
                false => MountCommand::passthrough(text),
            };
            let replacements = replaced.then(|| command.clone().into()).into_iter().collect();
            command.prefetch_files = prefetch;
            MountRecord {
                at: MountPoint::new(format!("/{at}")).unwrap(),
                command: command.into(),
                slot,
                unplaced,
                replacements,
            }
        })
}

fn bind() -> impl Strategy<Value = BindRecord> {
    (
        "[a-z]{1,8}",
        ".{0,20}",
        any::<[u64; 2]>(),
        any::<[bool; 3]>(),
        any::<Option<[u64; 3]>>(),
    )
        .prop_map(
            |(name, path, [dev, ino], [container, snapshotdir, rootfs], mount)| BindRecord {
                at: MountPoint::new(format!("/rafs/{name}/lowerdir")).unwrap(),
                bind: Bind {
                    share: path.clone().into(),
                    container: ContainerId::new(name).unwrap(),
                    source: path.into(),
                    inode: Inode { dev, ino },
                    made: Made {
                        container,
                        snapshotdir,
                        rootfs,
                    },
                    boot_id: "0".into(),
                    mounted: mount
                        .map(|[id, dev, ino]| Mount {
                            id,
                            parent: Inode { dev, ino },
                        })
                        .into(),
                },
            },
        )
}

prop_compose! {
    fn program()(
        embedded in any::<bool>(),
        exe in os_text(),
        args in proptest::collection::vec(os_text(), 0..4),
        env in proptest::collection::vec((os_text(), os_text()), 0..4),
        version in ".{0,8}",
    ) -> ProgramRecord {
        let kind = if embedded { ProgramKind::Embedded } else { ProgramKind::Stock };
        ProgramRecord { kind, exe, args, env, version }
    }
}

prop_compose! {
    fn document()(
        program in program(),
        share in proptest::option::of(".{0,20}"),
        [start_deadline_ms, call_deadline_ms, stop_grace_ms] in any::<[u64; 3]>(),
        phase in prop_oneof![
            Just(PhaseRecord::Starting), Just(PhaseRecord::Serving), Just(PhaseRecord::Stopping)
        ],
        daemon in proptest::option::of((any::<[u64; 3]>(), any::<u32>(), ".{0,36}", os_text(), any::<bool>())),
        mounts in proptest::collection::vec(mount(), 0..4),
        next_slot in any::<Option<u8>>(),
        health_interval_ms in any::<Option<u64>>(),
        binds in proptest::collection::vec(bind(), 0..4),
    ) -> StateDocument {
        let settings = Settings {
            share,
            start_deadline_ms,
            call_deadline_ms,
            stop_grace_ms,
            health_interval_ms,
            ..settings()
        };
        StateDocument {
            phase,
            daemon: daemon.map(|([start_ticks, dev, ino], pid, boot_id, cgroup, successor)| {
                DaemonRecord { pid, start_ticks, boot_id, exe: Some(Inode { dev, ino }), cgroup: Some(cgroup), cgroup_inode: Some(Inode { dev: ino, ino: dev }), successor }
            }),
            mounts,
            next_slot,
            binds,
            ..StateDocument::new(SandboxId::new("s1").unwrap(), program, settings)
        }
    }
}

proptest! {
    #[test]
    fn what_is_written_is_read(document in document()) {
        let read = StateDocument::parse(&document.encode().unwrap()).unwrap();
        prop_assert!(read == document);
    }

    #[test]
    fn any_bytes_are_a_document_or_refused(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
        let _ = StateDocument::parse(&bytes);
    }

    /// One byte of a real document changed: never a panic, and never another version.
    #[test]
    fn a_damaged_document_is_a_document_or_refused(
        document in document(), at in any::<proptest::sample::Index>(), byte in any::<u8>(),
    ) {
        let mut bytes = document.encode().unwrap();
        let at = at.index(bytes.len());
        bytes[at] = byte;
        if let Ok(read) = StateDocument::parse(&bytes) {
            prop_assert!(read.version <= VERSION);
        }
    }
}

#[test]
fn a_newer_version_is_refused_whatever_else_is_in_it() {
    let error = StateDocument::parse(br#"{"version":2,"sandbox":17}"#).unwrap_err();
    assert!(matches!(error, StateError::Newer { version: 2 }));
    assert_eq!(
        error.to_string(),
        "use the state of version 2: this program knows versions up to 1"
    );
}

#[test]
fn fields_of_a_later_writer_are_ignored() {
    let document = StateDocument::new(SandboxId::new("s1").unwrap(), plain_program(), settings());
    let mut json: serde_json::Value = serde_json::from_slice(&document.encode().unwrap()).unwrap();
    json["later"] = serde_json::json!({"x": 1});
    assert!(StateDocument::parse(json.to_string().as_bytes()).unwrap() == document);
}

/// From before slots, replacements and the interval of health were written down.
#[test]
fn a_document_of_an_earlier_writer_is_read_and_what_it_lacks_is_unknown() {
    let mut document = StateDocument::new(SandboxId::new("s1").unwrap(), plain_program(), settings());
    document.mounts.push(MountRecord {
        at: MountPoint::new("/m").unwrap(),
        command: MountCommand::passthrough("/src").into(),
        slot: None,
        unplaced: false,
        replacements: Vec::new(),
    });
    let mut json: serde_json::Value = serde_json::from_slice(&document.encode().unwrap()).unwrap();
    assert!(json.as_object_mut().unwrap().remove("next_slot").is_some());
    let settings = json["settings"].as_object_mut().unwrap();
    assert!(settings.remove("health_interval_ms").is_some());
    let mount = json["mounts"][0].as_object().unwrap();
    assert_eq!(mount.keys().collect::<Vec<_>>(), ["at", "command"]);
    assert!(StateDocument::parse(json.to_string().as_bytes()).unwrap() == document);
}

#[test]
fn debug_shows_no_configuration_and_no_environment() {
    let mut document = StateDocument::new(SandboxId::new("s1").unwrap(), plain_program(), settings());
    document.mounts.push(MountRecord {
        at: MountPoint::new("/m").unwrap(),
        command: MountCommand::rafs("/bootstrap", "c2VjcmV0").into(),
        slot: Some(1),
        unplaced: false,
        replacements: Vec::new(),
    });
    assert!(!format!("{document:?}").contains("c2VjcmV0"));
}

fn settings() -> Settings {
    let program = crate::program::Program::stock("/bin/sh").unwrap();
    crate::config::SandboxConfig::new(SandboxId::new("s1").unwrap(), "/run/nydusbox", program)
        .unwrap()
        .settings()
}

fn plain_program() -> ProgramRecord {
    ProgramRecord {
        kind: ProgramKind::Stock,
        exe: OsText("/usr/bin/nydusd".into()),
        args: Vec::new(),
        env: vec![(OsText("IMAGE_PULL_AUTH".into()), OsText("c2VjcmV0".into()))],
        version: String::new(),
    }
}

#[test]
fn what_is_wrong_with_a_document_is_said_without_its_values() {
    let error = StateDocument::parse(br#"{"version":1,"sandbox":{"auth":"c2VjcmV0"}}"#).unwrap_err();
    let nested = StateDocument::parse(br#"{"version":"c2VjcmV0"}"#).unwrap_err();
    for error in [error, nested] {
        let text = format!("{error} {error:?} {:?}", std::error::Error::source(&error));
        assert!(matches!(error, StateError::Malformed { line: 1, .. }), "{text}");
        assert!(!text.contains("c2VjcmV0"), "{text}");
    }
}
