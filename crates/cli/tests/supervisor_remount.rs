//! Giving a mounted image a new configuration while a guest uses it: with our daemon and with a genuine nydusd.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use common::Dir;
use nydusbox::protocol::{ContainerId, MountPoint, SandboxId};
use nydusbox::{
    CallError, MountError, MountOutcome, MountRequest, Program, RemountError, Sandbox, SandboxConfig,
};
use nydusbox_testkit::guest::{FuseClient, GuestConfig};
use nydusbox_testkit::image::{self, Image, RafsVersion};

#[tokio::test]
async fn an_image_gets_a_new_configuration_and_keeps_it_in_the_books() {
    let Some((nydusd, nydus_image)) = common::peer("nydusd").zip(common::peer("nydus-image")) else {
        return;
    };
    let programs = [
        Program::embedded(env!("CARGO_BIN_EXE_nydusbox")).unwrap(),
        Program::stock(nydusd).unwrap(),
    ];
    for (program, version) in programs.into_iter().zip([RafsVersion::V6, RafsVersion::V5]) {
        let dir = Dir::new();
        let source = dir.mkdir("source");
        std::fs::write(source.join("file"), "content").unwrap();
        let built = image::build(&nydus_image, &source, &dir.join("image"), version).unwrap();
        remount(&dir, program, &built).await;
    }
}

async fn remount(dir: &Dir, program: Program, image: &Image) {
    let config = SandboxConfig::new(SandboxId::new("s1").unwrap(), dir.mkdir("state"), program)
        .unwrap()
        .with_share(dir.mkdir("share"))
        .unwrap();
    let sandbox = Sandbox::start(config).await.unwrap();
    let container = ContainerId::new("c1").unwrap();
    let at = MountPoint::rafs_lowerdir(&container);
    let with = |cache: &str| {
        let config = image::rafs_config_localfs(&image.blobs, &dir.mkdir(cache));
        MountRequest::rafs(&container, &image.bootstrap, config).unwrap()
    };

    let early = sandbox.remount(with("first")).await;
    assert!(matches!(early, Err(RemountError::NotMounted { .. })), "{early:?}");
    sandbox.mount(with("first")).await.unwrap();
    let mut guest = FuseClient::mount(sandbox.vhost_socket().as_path(), GuestConfig::default()).unwrap();
    let file = guest.resolve(format!("{at}/file")).unwrap();

    sandbox.remount(with("second")).await.unwrap();
    assert_eq!(guest.read_node(file.nodeid, 7).unwrap(), b"content");
    assert_eq!(
        sandbox.mount(with("second")).await.unwrap(),
        MountOutcome::AlreadyMounted
    );
    let old = sandbox.mount(with("first")).await;
    assert!(matches!(old, Err(MountError::Conflict { .. })), "{old:?}");

    let missing = MountRequest::rafs(&container, dir.join("none"), "{}").unwrap();
    let refused = sandbox.remount(missing).await;
    match &refused {
        Err(RemountError::Daemon { source, .. }) => assert!(source.is_definite(), "{source:?}"),
        other => panic!("{other:?}"),
    }
    assert!(!matches!(
        refused,
        Err(RemountError::Daemon {
            source: CallError::NotMounted,
            ..
        })
    ));
    assert_eq!(guest.read_node(file.nodeid, 7).unwrap(), b"content");
    assert_eq!(
        sandbox.mount(with("second")).await.unwrap(),
        MountOutcome::AlreadyMounted
    );
    let share = MountRequest::passthrough(MountPoint::containers(), dir.join("share")).unwrap();
    let share = sandbox.remount(share).await;
    assert!(matches!(share, Err(RemountError::NotAnImage { .. })), "{share:?}");

    drop(guest);
    assert!(sandbox.stop().await.leftovers.is_empty());
}
