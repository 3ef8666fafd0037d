//! Recording what is read of an image, through the library: with our daemon, and with a genuine nydusd that cannot.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use common::Dir;
use nydusbox::protocol::{ContainerId, MountPoint, SandboxId};
use nydusbox::{CallError, MountRequest, Program, Sandbox, SandboxConfig, TraceError};
use nydusbox_testkit::guest::{FuseClient, GuestConfig};
use nydusbox_testkit::image::{self, Image, RafsVersion};

async fn with_image(dir: &Dir, program: Program, image: &Image) -> (Sandbox, MountPoint) {
    let config = SandboxConfig::new(SandboxId::new("s1").unwrap(), dir.mkdir("state"), program).unwrap();
    let sandbox = Sandbox::start(config).await.unwrap();
    let container = ContainerId::new("c1").unwrap();
    let config = image::rafs_config_localfs(&image.blobs, &dir.mkdir("cache"));
    sandbox
        .mount(MountRequest::rafs(&container, &image.bootstrap, config).unwrap())
        .await
        .unwrap();
    (sandbox, MountPoint::rafs_lowerdir(&container))
}

#[tokio::test]
async fn what_is_read_is_recorded_by_our_daemon_and_a_stock_one_is_said_not_to() {
    let Some((nydusd, nydus_image)) = common::peer("nydusd").zip(common::peer("nydus-image")) else {
        return;
    };
    let dir = Dir::new();
    let source = dir.mkdir("source");
    std::fs::write(source.join("file"), "content").unwrap();
    let image = image::build(&nydus_image, &source, &dir.join("image"), RafsVersion::V6).unwrap();

    let ours = Program::embedded(env!("CARGO_BIN_EXE_nydusbox")).unwrap();
    let (sandbox, at) = with_image(&dir, ours, &image).await;
    let early = sandbox.trace(&at).await;
    assert!(matches!(early, Err(TraceError::NotRecorded { .. })), "{early:?}");
    sandbox.start_trace(&at).await.unwrap();
    let mut guest = FuseClient::mount(sandbox.vhost_socket().as_path(), GuestConfig::default()).unwrap();
    let file = guest.resolve(format!("{at}/file")).unwrap();
    assert_eq!(guest.read_node(file.nodeid, 7).unwrap(), b"content");
    let trace = sandbox.trace(&at).await.unwrap();
    let read = &trace.reads[0];
    assert_eq!(
        (trace.reads.len(), read.path.as_str(), read.length),
        (1, "/file", 7)
    );
    let nowhere = sandbox.start_trace(&MountPoint::containers()).await;
    assert!(
        matches!(
            nowhere,
            Err(TraceError::Call {
                source: CallError::NotMounted,
                ..
            })
        ),
        "{nowhere:?}"
    );
    drop(guest);
    assert!(sandbox.stop().await.leftovers.is_empty());

    let (sandbox, at) = with_image(&dir, Program::stock(nydusd).unwrap(), &image).await;
    let refused = sandbox.start_trace(&at).await;
    assert!(
        matches!(refused, Err(TraceError::Unsupported { .. })),
        "{refused:?}"
    );
    assert!(sandbox.stop().await.leftovers.is_empty());
}
