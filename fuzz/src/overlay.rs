//! The options the mount helper is given.

use std::path::PathBuf;

use nydusbox_rootfs::{MAX_LAYERS, MAX_MOUNT_DATA, MountPlan, OverlayMount};

/// One `-o`; long ones come about by repeating what is given.
pub fn overlay_options(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else {
        return;
    };
    check(text);
    // A first byte that is a digit asks for a longer path in each `@`.
    if let Some(repeat) = text.chars().next().and_then(|c| c.to_digit(10)) {
        check(&text[1..].replace('@', &"/directory".repeat(1 << repeat)));
    }
}

fn check(options: &str) {
    let Ok(mount) = OverlayMount::parse([options]) else {
        return;
    };
    let given: Vec<PathBuf> = mount.directories().map(|(_, path)| path).collect();
    assert!((1..=MAX_LAYERS + 2).contains(&given.len()));
    match mount.plan() {
        MountPlan::AsGiven { data } => {
            assert!(data.len() <= MAX_MOUNT_DATA);
            assert_eq!(named(&data), given, "the same directories");
        }
        MountPlan::Relative { dir, data } => {
            assert!(data.len() <= MAX_MOUNT_DATA && dir.is_absolute());
            let named: Vec<PathBuf> = named(&data).iter().map(|name| dir.join(name)).collect();
            assert_eq!(named, given, "the same directories");
        }
        MountPlan::ByDescriptor => {
            let numbers: Vec<i32> = (3..).take(given.len()).collect();
            let Ok(data) = mount.data_by_descriptor(&numbers) else {
                return;
            };
            assert!(data.len() <= MAX_MOUNT_DATA);
            let expected: Vec<PathBuf> = numbers.iter().map(|n| n.to_string().into()).collect();
            assert_eq!(named(&data), expected, "a number for each directory");
        }
    }
}

/// The directories mount data names, read again by the parser under test.
fn named(data: &str) -> Vec<PathBuf> {
    let private = ["extraoption=", "io.katacontainers.volume="];
    assert!(
        options(data)
            .iter()
            .all(|option| private.iter().all(|key| !option.starts_with(key))),
        "the kernel is not told what is for a runtime"
    );
    OverlayMount::parse([data])
        .map(|mount| mount.directories().map(|(_, path)| path).collect())
        .unwrap_or_default()
}

/// The options as overlayfs splits them: a backslash takes the next character along.
fn options(data: &str) -> Vec<String> {
    let mut options = vec![String::new()];
    let mut chars = data.chars();
    while let Some(c) = chars.next() {
        match (c, options.last_mut()) {
            (',', _) => options.push(String::new()),
            ('\\', Some(option)) => {
                option.push(c);
                option.extend(chars.next());
            }
            (_, Some(option)) => option.push(c),
            (_, None) => {}
        }
    }
    options
}
