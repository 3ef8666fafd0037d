//! A guest whose daemon is killed and replaced: it connects again and reads on in its image, by the inode numbers it
//! knows. With our daemon and with a genuine nydusd.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use std::time::Duration;

use common::Dir;
use nydusbox::protocol::{ContainerId, MountPoint, SandboxId};
use nydusbox::{
    EventItem, Events, GuestOutlook, MountRequest, OnExit, Program, RestartPolicy, Sandbox, SandboxConfig,
    SandboxEvent,
};
use nydusbox_testkit::guest::{FuseClient, GuestConfig, SimGuest};
use nydusbox_testkit::image::{self, Image, RafsVersion};

async fn until(events: &mut Events, wanted: impl Fn(&SandboxEvent) -> bool) -> SandboxEvent {
    loop {
        match tokio::time::timeout(Duration::from_secs(60), events.next())
            .await
            .unwrap()
        {
            Some(EventItem::Record(record)) if wanted(&record.event) => return record.event,
            Some(EventItem::Record(record)) => println!("{:?}", record.event),
            other => panic!("{other:?}"),
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_guest_that_reconnects_reads_on_in_its_image() {
    let Some((nydusd, nydus_image)) = common::peer("nydusd").zip(common::peer("nydus-image")) else {
        return;
    };
    let programs = [
        Program::embedded(env!("CARGO_BIN_EXE_nydusbox")).unwrap(),
        Program::stock(nydusd).unwrap(),
    ];
    for program in programs {
        let dir = Dir::new();
        let source = dir.mkdir("source");
        std::fs::create_dir(source.join("dir")).unwrap();
        for n in 0..10u8 {
            std::fs::write(source.join(format!("dir/file{n}")), vec![b'0' + n; 50_000]).unwrap();
        }
        let built = image::build(&nydus_image, &source, &dir.join("image"), RafsVersion::V6).unwrap();
        read_on(&dir, program, &built).await;
    }
}

async fn read_on(dir: &Dir, program: Program, image: &Image) {
    let ms = Duration::from_millis;
    let config = SandboxConfig::new(SandboxId::new("s1").unwrap(), dir.mkdir("state"), program)
        .unwrap()
        .with_share(dir.mkdir("share"))
        .unwrap()
        .with_on_exit(OnExit::Restart(
            RestartPolicy::default().with_delays(ms(1), ms(8)),
        ));
    let sandbox = Sandbox::start(config).await.unwrap();
    let mut events = sandbox.events();
    let images = ["c1", "c2", "c3"].map(|id| {
        let cache = image::rafs_config_localfs(&image.blobs, &dir.mkdir(&format!("cache-{id}")));
        MountRequest::rafs(&ContainerId::new(id).unwrap(), &image.bootstrap, cache).unwrap()
    });
    for request in &images {
        sandbox.mount(request.clone()).await.unwrap();
    }
    // The second slot becomes free: the new daemon has to leave it out.
    sandbox.unmount(images[0].at().clone()).await.unwrap();

    let mut guest = FuseClient::mount(sandbox.vhost_socket().as_path(), GuestConfig::default()).unwrap();
    let mut known = Vec::new();
    for request in &images[1..] {
        for n in [2u8, 7] {
            let file = guest.resolve(format!("{}/dir/file{n}", request.at())).unwrap();
            assert_eq!(
                guest.read_node(file.nodeid, 50_000).unwrap(),
                vec![b'0' + n; 50_000]
            );
            known.push((file.nodeid, n));
        }
    }

    for _ in 0..2 {
        let pid = i32::try_from(sandbox.status().borrow().pid).unwrap();
        let pid = rustix::process::Pid::from_raw(pid).unwrap();
        rustix::process::kill_process(pid, rustix::process::Signal::KILL).unwrap();
        let recovered = until(&mut events, |e| matches!(e, SandboxEvent::Recovered { .. })).await;
        match recovered {
            SandboxEvent::Recovered { mounts: 3, guest, .. } => {
                assert_eq!(guest, GuestOutlook::ImagesIfVmmReconnects);
            }
            other => panic!("{other:?}"),
        }
        // A VMM sets its rings up again; the guest's kernel knows nothing of it and sends no FUSE_INIT.
        drop(guest);
        let connected = SimGuest::connect(sandbox.vhost_socket().as_path(), GuestConfig::default());
        guest = FuseClient::new(connected.unwrap());
        for &(nodeid, n) in &known {
            assert_eq!(guest.read_node(nodeid, 50_000).unwrap(), vec![b'0' + n; 50_000]);
        }
        assert_eq!(guest.getattr(known[0].0).unwrap().size, 50_000);
    }
    let share = MountPoint::containers();
    assert!(
        sandbox
            .status()
            .borrow()
            .mounts
            .iter()
            .any(|m| m.at == share && m.confirmed)
    );
    drop(guest);
    let outcome = sandbox.stop().await;
    assert!(outcome.leftovers.is_empty(), "{outcome:?}");
    assert_eq!(std::fs::read_dir(dir.join("state")).unwrap().count(), 0);
}
