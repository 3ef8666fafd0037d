//! Bodies as a genuine nydusd 2.2.0 sends and takes them (`tests/golden`, captured from it; only directories are
//! renamed): they must be read completely and written the same.

use nydusbox_protocol::{ApiError, DaemonInfo, DaemonState, ErrorCode, MountCommand};
use serde_json::Value;

fn value(text: &str) -> Value {
    serde_json::from_str(text).expect("a golden body is JSON")
}

/// Reading and writing again loses nothing.
fn round_trips<T: serde::de::DeserializeOwned + serde::Serialize>(text: &str) -> T {
    let parsed: T = serde_json::from_str(text).expect("a golden body is understood");
    assert_eq!(
        serde_json::to_value(&parsed).expect("it can be written"),
        value(text)
    );
    parsed
}

#[test]
fn daemon_info_with_every_kind_of_mount() {
    let info: DaemonInfo = round_trips(include_str!("golden/daemon.json"));
    assert_eq!(info.state, DaemonState::Running);
    let mounts = info.backend_collection.expect("v1 lists mounts");
    assert_eq!(mounts["/rafs/c1/lowerdir"].backend_type, "Rafs");
    assert_eq!(mounts["/containers"].config, None);
}

#[test]
fn daemon_info_v2_has_no_mounts() {
    // The embedded daemon leaves its additional field out where it has nothing to say.
    let info: DaemonInfo = round_trips(include_str!("golden/daemon_v2.json"));
    assert_eq!(info.backend_collection, None);
}

#[test]
fn an_error_is_flat() {
    let error: ApiError = round_trips(include_str!("golden/error_exists.json"));
    assert_eq!(error.code, ErrorCode::Undefined);
    assert!(error.message.contains("already exists"));
}

#[test]
fn a_mount_command_is_written_as_kata_writes_it() {
    let command: MountCommand = round_trips(include_str!("golden/mount_passthrough.json"));
    assert_eq!(command, MountCommand::passthrough("/run/x/shared"));
}
