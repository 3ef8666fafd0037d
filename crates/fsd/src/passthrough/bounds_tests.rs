//! What a guest can use up, and what is then not left half-done.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::ffi::CString;
use std::fs;
use std::os::unix::fs::MetadataExt;

use super::tests::Shared;
use super::*;

#[test]
fn an_inode_that_is_kept_by_handle_gets_another_name() {
    let shared = Shared::with(ShareOptions::default(), 10, 0);
    if !shared.share.handles_work {
        eprintln!("skipped: file handles need root and a file system that has them");
        return;
    }
    let file = shared.file("file", "content");
    std::os::unix::fs::symlink("file", shared.path("link")).unwrap();
    for name in [c"file", c"link"] {
        let inode = shared.lookup(name).unwrap().inode;
        let other = CString::new(format!("other-{}", name.to_str().unwrap())).unwrap();
        let entry = shared.share.link(inode, shared.root(), &other).unwrap();
        assert_eq!((entry.inode, entry.attr.st_nlink), (inode, 2));
    }
    assert_eq!(
        fs::metadata(file).unwrap().ino(),
        fs::metadata(shared.path("other-file")).unwrap().ino()
    );
    assert!(shared.path("other-link").is_symlink());
}
