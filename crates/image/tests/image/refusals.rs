//! Bad input: one sentence that says what and where, and nothing left behind.

use std::error::Error;
use std::fs;
use std::io::Write;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;
use std::process::Command;

use nydusbox_image::{BuildConfig, BuildError, EntryProblem, ImageDir, OpenError, Quiet, Source, build};
use tar::{EntryType, Header};

use crate::{names, temp_dir, tree};

fn build_to(source: Source, out: &Path) -> Result<(), BuildError> {
    build(&BuildConfig::new(source, out), &Quiet).map(drop)
}

/// Builds an archive of these bytes, which must fail and leave nothing.
fn refusal(archive: &[u8]) -> BuildError {
    let dir = temp_dir();
    let path = dir.path().join("archive.tar");
    fs::write(&path, archive).unwrap();
    let error = build_to(Source::detect(&path).unwrap(), &dir.path().join("image")).unwrap_err();
    assert_eq!(names(dir.path()), ["archive.tar"]);
    assert!(error.to_string().contains("archive.tar"), "{error}");
    error
}

pub(crate) fn entry(kind: EntryType, name: &str, content: &[u8]) -> Vec<u8> {
    let mut header = Header::new_ustar();
    // `set_path` refuses what is to be refused here.
    header.as_mut_bytes()[..name.len()].copy_from_slice(name.as_bytes());
    header.set_entry_type(kind);
    header.set_mode(0o644);
    header.set_size(content.len() as u64);
    header.set_mtime(1);
    header.set_cksum();
    let mut bytes = header.as_bytes().to_vec();
    bytes.extend_from_slice(content);
    bytes.resize(bytes.len().next_multiple_of(512), 0);
    bytes
}

fn problem(archive: &[u8]) -> EntryProblem {
    match refusal(archive) {
        BuildError::TarEntry { problem, .. } => problem,
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_source_that_is_not_there_or_no_file_is_named() {
    let missing = Source::detect("/no/such/source".as_ref()).unwrap_err();
    assert!(matches!(missing, BuildError::SourceMissing { .. }));
    assert_eq!(missing.to_string(), "source /no/such/source does not exist");
    let device = Source::detect("/dev/null".as_ref()).unwrap_err();
    assert!(matches!(device, BuildError::SourceUnsupported { .. }));
}

#[test]
fn what_is_no_archive_is_called_so() {
    let text = b"this is a text file, which is a bit longer than one block of a tar archive\n".repeat(10);
    for content in [
        &b""[..],
        b"x",
        &text,
        &tree::noise(3, 5000),
        b"\x1f\x8b\x08 not gzip after all",
    ] {
        assert!(matches!(refusal(content), BuildError::NotATar { .. }));
    }
}

#[test]
fn an_archive_cut_short_is_called_damaged() {
    let dir = temp_dir();
    let source = dir.path().join("source");
    fs::create_dir(&source).unwrap();
    fs::write(source.join("file"), tree::noise(4, 200_000)).unwrap();
    for gzip in [false, true] {
        let archive = dir.path().join("archive");
        tree::archive(&source, &archive, gzip);
        let whole = fs::read(&archive).unwrap();
        let error = refusal(&whole[..whole.len() / 2]);
        assert!(matches!(error, BuildError::DamagedTar { .. }), "{error:?}");
        assert!(error.source().is_some());
    }
}

#[test]
fn entries_that_cannot_be_used_are_named() {
    let file = EntryType::Regular;
    assert_eq!(
        problem(&entry(file, "../escape", b"")),
        EntryProblem::ParentComponent
    );
    assert_eq!(
        problem(&entry(file, "a/../../b", b"")),
        EntryProblem::ParentComponent
    );
    assert_eq!(
        problem(&entry(EntryType::new(b'V'), "v", b"")),
        EntryProblem::Type { type_flag: b'V' }
    );
    let long_name = "n".repeat(256);
    let long = [
        entry(EntryType::GNULongName, "././@LongLink", long_name.as_bytes()),
        entry(file, "n", b""),
    ];
    assert_eq!(problem(&long.concat()), EntryProblem::NameTooLong);
}

/// An extended header with an attribute of so many bytes.
pub(crate) fn attribute(name: &str, bytes: usize) -> Vec<u8> {
    let record = format!(" SCHILY.xattr.{name}={}\n", "v".repeat(bytes));
    // The length counts its own digits.
    let digits = [1, 2, 3, 4, 5]
        .into_iter()
        .find(|digits| (record.len() + digits).to_string().len() == *digits);
    let record = format!("{}{record}", record.len() + digits.unwrap());
    entry(EntryType::XHeader, "x", record.as_bytes())
}

#[test]
fn a_small_archive_with_much_to_remember_is_refused() {
    // 325 MB of attributes in half a megabyte.
    let one = [
        attribute("user.a", 65_000),
        entry(EntryType::Regular, "file", b""),
    ]
    .concat();
    let mut packed = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::new(6));
    for _ in 0..5000 {
        packed.write_all(&one).unwrap();
    }
    packed.write_all(&[0; 1024]).unwrap();
    let error = refusal(&packed.finish().unwrap());
    assert_eq!(
        error.source().unwrap().to_string(),
        "the layer names more files, or says more of them, than one of its length has reason to"
    );
}

#[test]
fn extended_headers_of_one_entry_are_limited_together() {
    let file = entry(EntryType::Regular, "file", b"");
    let headers = |count| {
        [
            attribute("user.a", 65_000).repeat(count),
            file.clone(),
            vec![0; 1024],
        ]
        .concat()
    };
    let BuildError::DamagedTar { source, .. } = refusal(&headers(17)) else {
        panic!("{:?}", refusal(&headers(17)));
    };
    assert_eq!(
        source.to_string(),
        "an entry has extended headers of more than 1 MiB"
    );
    // The attributes of 16 are too many, but not the headers.
    assert_eq!(problem(&headers(16)), EntryProblem::Xattr);
}

#[test]
fn an_attribute_without_a_name_in_its_name_space_is_refused() {
    for name in ["user.", "trusted.", "security."] {
        let archive = [attribute(name, 1), entry(EntryType::Regular, "file", b"")].concat();
        assert_eq!(problem(&archive), EntryProblem::Xattr, "{name}");
    }
}

#[test]
fn hard_links_need_a_file_before_them() {
    let mut link = entry(EntryType::Link, "link", b"");
    let mut header = Header::from_byte_slice(&link[..512]).clone();
    header.set_link_name("target").unwrap();
    header.set_cksum();
    link[..512].copy_from_slice(header.as_bytes());
    let target = |kind| entry(kind, "target", b"");
    assert_eq!(problem(&link), EntryProblem::LinkTarget);
    assert_eq!(
        problem(&[link.clone(), target(EntryType::Regular)].concat()),
        EntryProblem::LinkTarget
    );
    assert_eq!(
        problem(&[target(EntryType::Directory), link].concat()),
        EntryProblem::LinkTarget
    );
}

#[test]
fn an_existing_image_is_replaced_only_by_force_and_other_things_never() {
    let dir = temp_dir();
    let source = dir.path().join("source");
    fs::create_dir(&source).unwrap();
    let out = dir.path().join("image");
    fs::create_dir(&out).unwrap();
    build_to(Source::Directory(source.clone()), &out).expect("an empty directory is in nobody's way");

    fs::write(source.join("new"), b"content").unwrap();
    let refused = build_to(Source::Directory(source.clone()), &out);
    assert!(matches!(refused, Err(BuildError::OutputExists { .. })));
    assert_eq!(ImageDir::open(&out).unwrap().summary().regular_files, 0);
    build(
        &BuildConfig::new(Source::Directory(source.clone()), &out).force(true),
        &Quiet,
    )
    .unwrap();
    assert_eq!(ImageDir::open(&out).unwrap().summary().regular_files, 1);

    fs::write(out.join("precious"), b"").unwrap();
    let refused = build(
        &BuildConfig::new(Source::Directory(source.clone()), &out).force(true),
        &Quiet,
    );
    assert!(matches!(refused, Err(BuildError::OutputNotImage { .. })));
    let refused = build_to(Source::Directory(source.clone()), &source.join("new"));
    assert!(matches!(refused, Err(BuildError::OutputNotImage { .. })));
    assert_eq!(names(dir.path()), ["image", "source"]);
}

#[test]
fn an_output_inside_the_source_or_without_a_parent_is_refused() {
    let dir = temp_dir();
    let inside = build_to(
        Source::Directory(dir.path().to_owned()),
        &dir.path().join("image"),
    );
    assert!(matches!(inside, Err(BuildError::OutputInsideSource { .. })));
    let orphan = build_to(
        Source::Directory(dir.path().to_owned()),
        &dir.path().join("no/such/image"),
    );
    assert!(matches!(orphan, Err(BuildError::Output { .. })));
    assert!(names(dir.path()).is_empty());
}

#[test]
fn what_a_killed_build_left_is_cleared_away_and_what_a_live_one_holds_is_not() {
    let dir = temp_dir();
    let source = dir.path().join("source");
    fs::create_dir(&source).unwrap();
    let dead = dir.path().join(".image.partial-dead00");
    fs::create_dir_all(dead.join("work").join("blobs")).unwrap();
    symlink("/", dead.join("source")).unwrap();
    let live = dir.path().join(".image.partial-live00");
    fs::create_dir(&live).unwrap();
    let lock = fs::File::open(&live).unwrap();
    rustix::fs::flock(&lock, rustix::fs::FlockOperation::LockExclusive).unwrap();
    build_to(Source::Directory(source), &dir.path().join("image")).unwrap();
    assert_eq!(names(dir.path()), [".image.partial-live00", "image", "source"]);
}

#[test]
fn what_only_has_the_name_of_what_a_killed_build_left_stays() {
    let dir = temp_dir();
    let source = dir.path().join("source");
    fs::create_dir(&source).unwrap();
    for name in [
        "notes0/thesis",
        "longer-than-ours/work",
        "4chr/work",
        "has..s/work",
    ] {
        fs::create_dir_all(dir.path().join(format!(".image.partial-{name}"))).unwrap();
    }
    // Opened, it would keep who reads until somebody writes.
    let fifo = dir.path().join(".image.partial-fifo00");
    rustix::fs::mkfifoat(rustix::fs::CWD, &fifo, rustix::fs::Mode::RWXU).unwrap();
    let elsewhere = dir.path().join("elsewhere");
    fs::create_dir_all(elsewhere.join("work")).unwrap();
    symlink(&elsewhere, dir.path().join(".image.partial-link00")).unwrap();
    let mut before = names(dir.path());
    build_to(Source::Directory(source), &dir.path().join("image")).unwrap();
    before.push("image".to_owned());
    before.sort();
    assert_eq!(names(dir.path()), before);
    assert!(elsewhere.join("work").exists());
}

/// Runs only for root, who needs no permission to read: so another user is asked.
#[test]
fn a_file_without_read_permission_is_named() {
    if tree::is_root() {
        // The check itself runs as this user in `as_nobody`, in another process.
        let dir = tempfile::tempdir().unwrap();
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o777)).unwrap();
        let copy = dir.path().join("test");
        fs::copy(std::env::current_exe().unwrap(), &copy).unwrap();
        let output = Command::new("setpriv")
            .args(["--reuid=65534", "--regid=65534", "--clear-groups"])
            .arg(&copy)
            .args([
                "--exact",
                "refusals::a_file_without_read_permission_is_named",
                "--nocapture",
            ])
            .env("TMPDIR", dir.path())
            .output()
            .unwrap();
        assert!(
            output.status.success(),
            "{}",
            String::from_utf8_lossy(&output.stderr)
        );
        assert!(String::from_utf8_lossy(&output.stdout).contains("1 passed"));
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let source = dir.path().join("source");
    fs::create_dir(&source).unwrap();
    fs::write(source.join("secret"), b"").unwrap();
    fs::set_permissions(source.join("secret"), fs::Permissions::from_mode(0o000)).unwrap();
    let error = build_to(Source::Directory(source.clone()), &dir.path().join("image")).unwrap_err();
    assert_eq!(
        error.to_string(),
        format!("cannot read {}", source.join("secret").display())
    );
    assert_eq!(names(dir.path()), ["source"]);
}

/// Needs a small file system, which needs root.
#[test]
fn a_full_file_system_is_called_so() {
    if !tree::is_root() {
        eprintln!("skipped: mounting a small file system needs root");
        return;
    }
    let dir = temp_dir();
    let source = dir.path().join("source");
    fs::create_dir(&source).unwrap();
    fs::write(source.join("large"), tree::noise(5, 4 << 20)).unwrap();
    let small = dir.path().join("small");
    fs::create_dir(&small).unwrap();
    let mounted = Mount::tmpfs(&small, "size=1m");
    for source in [Source::Directory(source.clone()), {
        tree::archive(&source, &dir.path().join("archive"), false);
        Source::Tar(dir.path().join("archive"))
    }] {
        let error = build_to(source, &small.join("image")).unwrap_err();
        assert!(matches!(error, BuildError::OutOfSpace { .. }), "{error:?}");
        assert!(names(&small).is_empty());
    }
    drop(mounted);
}

struct Mount<'a>(&'a Path);

impl<'a> Mount<'a> {
    fn tmpfs(at: &'a Path, options: &str) -> Self {
        let options = std::ffi::CString::new(options).unwrap();
        let flags = rustix::mount::MountFlags::empty();
        rustix::mount::mount("tmpfs", at, "tmpfs", flags, options.as_c_str()).unwrap();
        Self(at)
    }
}

impl Drop for Mount<'_> {
    fn drop(&mut self) {
        rustix::mount::unmount(self.0, rustix::mount::UnmountFlags::DETACH).unwrap();
    }
}

#[test]
fn an_image_directory_that_is_not_whole_is_not_opened() {
    let dir = temp_dir();
    let source = dir.path().join("source");
    fs::create_dir(&source).unwrap();
    fs::write(source.join("file"), tree::noise(6, 10_000)).unwrap();
    let out = dir.path().join("image");
    build_to(Source::Directory(source.clone()), &out).unwrap();
    let blob = out
        .join("blobs")
        .join(&ImageDir::open(&out).unwrap().summary().blobs[0].id);

    for path in [Path::new("/no/such/image"), &source, &source.join("file")] {
        assert!(matches!(
            ImageDir::open(path),
            Err(OpenError::NotAnImageDir { .. })
        ));
    }
    let whole = fs::read(&blob).unwrap();
    fs::write(&blob, &whole[1..]).unwrap();
    let error = ImageDir::open(&out).unwrap_err();
    assert!(
        matches!(error, OpenError::WrongSize { .. }) && error.to_string().contains(blob.to_str().unwrap())
    );
    fs::remove_file(&blob).unwrap();
    assert!(matches!(ImageDir::open(&out), Err(OpenError::Missing { .. })));
    fs::write(&blob, whole).unwrap();
    ImageDir::open(&out).unwrap();

    let summary = fs::read_to_string(out.join("image.json")).unwrap();
    fs::write(
        out.join("image.json"),
        summary.replace("\"version\": 1", "\"version\": 2, \"future\": 1"),
    )
    .unwrap();
    assert!(matches!(
        ImageDir::open(&out),
        Err(OpenError::UnknownVersion { version: 2, .. })
    ));
    // A later minor addition is no reason to refuse.
    fs::write(
        out.join("image.json"),
        summary.replace("\"image\": {", "\"image\": {\"future\": 1,"),
    )
    .unwrap();
    ImageDir::open(&out).unwrap();
    fs::write(out.join("image.json"), &summary[..summary.len() / 2]).unwrap();
    assert!(matches!(
        ImageDir::open(&out),
        Err(OpenError::DamagedSummary { .. })
    ));
}
