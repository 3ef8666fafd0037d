//! Images that lie, and images that are taken away: they fail, and nothing else does.

#![expect(clippy::unwrap_used, reason = "a suite fails by panicking")]

use std::fs::{self, File};
use std::path::Path;

use rustix::io::Errno;

use super::fixture::{Fixture, done, guest};
use crate::image::{Image, RafsVersion};
use crate::peers::Skip;

type Outcome = Result<(), Skip>;

/// So many that their metadata take many pages.
const FILES: u64 = 400;

fn body(fx: &Fixture, image: &Image, bootstrap: &Path) -> String {
    let image = Image {
        bootstrap: bootstrap.to_owned(),
        ..image.clone()
    };
    fx.local_body(&image)
}

/// Of two images one has its bootstrap truncated under it.
pub(super) fn truncated_bootstrap(fx: &Fixture) -> Outcome {
    let source = fx.data_source(FILES, 100);
    let image = fx.image(&source, RafsVersion::V6)?;
    let copy = fx.path("copy");
    fs::copy(&image.bootstrap, &copy).unwrap();
    let daemon = fx.daemon(&[]);
    done(&daemon.mount("/whole", &fx.local_body(&image)).unwrap());
    done(&daemon.mount("/cut", &body(fx, &image, &copy)).unwrap());
    let mut fs = guest(&daemon);
    let content = fs::read(source.join("file-0")).unwrap();
    assert!(fs.read_file("/cut/file-0").unwrap() == content);

    let cut = fs.resolve("/cut").unwrap().nodeid;
    // As copying another file over it begins.
    File::options().write(true).truncate(true).open(&copy).unwrap();
    for i in 1..FILES {
        let name = format!("file-{i}");
        // Never that there is none: whoever is told so believes it.
        let looked_up = fs.lookup(cut, name.as_bytes()).err().and_then(|e| e.errno());
        assert_eq!(looked_up, Some(Errno::IO), "{name}");
        let whole = fs.read_file(format!("/whole/{name}")).unwrap();
        assert!(whole == fs::read(source.join(&name)).unwrap(), "{name}");
    }
    let events = daemon.api("GET", "/api/v1/daemon/events", None).unwrap().body;
    assert!(
        events.contains("was overwritten while it was mounted"),
        "{events}"
    );

    done(&daemon.umount("/cut").unwrap());
    fs::copy(&image.bootstrap, &copy).unwrap();
    done(&daemon.mount("/again", &body(fx, &image, &copy)).unwrap());
    assert!(fs.read_file("/again/file-7").unwrap() == fs::read(source.join("file-7")).unwrap());
    assert!(daemon.is_alive());
    Ok(())
}

/// A blob's name leads to a file of the host.
pub(super) fn blob_elsewhere(fx: &Fixture) -> Outcome {
    let source = fx.data_source(3, 5000);
    for version in [RafsVersion::V5, RafsVersion::V6] {
        let image = fx.image(&source, version)?;
        let id = fs::read_dir(&image.blobs)
            .unwrap()
            .next()
            .unwrap()
            .unwrap()
            .file_name();
        let id = id.into_string().unwrap();
        let elsewhere = format!("{}x", "../".repeat(21));
        assert_eq!(id.len(), elsewhere.len());
        let mut bytes = fs::read(&image.bootstrap).unwrap();
        // RAFS v6 has it twice, and only the second is what nydus goes by.
        let places: Vec<_> = (0..bytes.len() - id.len())
            .filter(|at| bytes[*at..].starts_with(id.as_bytes()))
            .collect();
        assert!(!places.is_empty());
        for at in places {
            bytes[at..at + id.len()].copy_from_slice(elsewhere.as_bytes());
        }
        let hostile = fx.path("hostile");
        fs::write(&hostile, bytes).unwrap();

        let daemon = fx.daemon(&[]);
        done(&daemon.mount("/good", &fx.local_body(&image)).unwrap());
        let refused = daemon.mount("/bad", &body(fx, &image, &hostile)).unwrap();
        assert_ne!(refused.status, 204);
        assert!(
            refused.body.contains("cannot be the name of one"),
            "{}",
            refused.body
        );
        // A new bootstrap of an image that is mounted is looked at as well.
        let refused = daemon
            .api(
                "PUT",
                "/api/v1/mount?mountpoint=/good",
                Some(&body(fx, &image, &hostile)),
            )
            .unwrap();
        assert_ne!(refused.status, 204);
        let mut fs = guest(&daemon);
        assert!(fs.read_file("/good/file-1").unwrap() == fs::read(source.join("file-1")).unwrap());
        drop(fs);
        drop(daemon);
        fs::remove_dir_all(fx.path("image")).unwrap();
    }
    Ok(())
}
