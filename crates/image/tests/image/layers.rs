//! Layers become one file system as the OCI image specification has it, whatever archiver made them.

use std::ffi::OsString;
use std::fs::{self, File};
use std::io::Write;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};

use nydusbox_image::{
    BuildConfig, BuildError, EntryProblem, FsVersion, ImageDir, LayerError, Quiet, RafsFormat, Source, build,
};
use rustix::fs::{XattrFlags, lsetxattr};

use crate::{names, temp_dir, tree, walk};

fn build_layers(archives: &[PathBuf], out: &Path, version: FsVersion) -> Result<ImageDir, BuildError> {
    let config = BuildConfig::new(Source::Layers(archives.to_vec()), out)
        .format(RafsFormat::default().fs_version(version));
    build(&config, &Quiet)?;
    Ok(ImageDir::open(out).unwrap())
}

/// One archive made entry by entry, for what `tar` would not write.
struct Archive(tar::Builder<Vec<u8>>);

impl Archive {
    fn new() -> Self {
        Self(tar::Builder::new(Vec::new()))
    }

    fn entry(&mut self, kind: tar::EntryType, path: &str, link: &str, content: &[u8]) -> &mut Self {
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(kind);
        header.set_mode(if kind.is_dir() { 0o755 } else { 0o644 });
        header.set_uid(0);
        header.set_gid(0);
        header.set_mtime(1_000_000_000);
        header.set_size(content.len() as u64);
        // Not by `set_path`, which refuses what is to be refused here.
        let bytes = header.as_old_mut();
        bytes.name[..path.len()].copy_from_slice(path.as_bytes());
        bytes.linkname[..link.len()].copy_from_slice(link.as_bytes());
        header.set_cksum();
        self.0.append(&header, content).unwrap();
        self
    }

    fn file(&mut self, path: &str, content: &[u8]) -> &mut Self {
        self.entry(tar::EntryType::Regular, path, "", content)
    }

    fn dir(&mut self, path: &str) -> &mut Self {
        self.entry(tar::EntryType::Directory, path, "", b"")
    }

    fn link(&mut self, path: &str, target: &str) -> &mut Self {
        self.entry(tar::EntryType::Link, path, target, b"")
    }

    fn symlink(&mut self, path: &str, target: &str) -> &mut Self {
        self.entry(tar::EntryType::Symlink, path, target, b"")
    }

    fn write(&self, path: PathBuf) -> PathBuf {
        let mut builder = self.0.get_ref().clone();
        builder.extend_from_slice(&[0; 1024]);
        fs::write(&path, builder).unwrap();
        path
    }
}

/// The files' paths in an image of these layers, directories with a slash, and their content.
fn listing(dir: &Path, layers: &[&Archive]) -> Vec<String> {
    let archives: Vec<_> = layers
        .iter()
        .enumerate()
        .map(|(number, layer)| layer.write(dir.join(format!("{number}.tar"))))
        .collect();
    let out = dir.join("image");
    let image = build_layers(&archives, &out, FsVersion::V6).unwrap();
    let listing = walk::list(&image);
    fs::remove_dir_all(out).unwrap();
    listing
}

#[test]
fn one_layer_is_kept_in_all_its_attributes_however_compressed() {
    for version in [FsVersion::V5, FsVersion::V6] {
        for compression in ["--no-auto-compress", "--gzip", "--zstd"] {
            let dir = temp_dir();
            let source = dir.path().join("source");
            fs::create_dir(&source).unwrap();
            tree::make(&source);
            // In a layer it would be a whiteout.
            fs::remove_file(source.join("etc/.wh.not-a-whiteout")).unwrap();
            tree::add_linked_attribute(&source);
            let value = b"a value\nof two lines";
            lsetxattr(
                source.join("etc/attributes"),
                "user.lines",
                value,
                XattrFlags::empty(),
            )
            .unwrap();
            let archive = dir.path().join("layer");
            tree::archive_as(&source, &archive, &[compression]);
            let image = build_layers(&[archive], &dir.path().join("image"), version).unwrap();
            walk::assert_same(&walk::tree(&source), &walk::image(&image));
            assert_eq!(names(dir.path()), ["image", "layer", "source"]);
        }
    }
}

#[test]
fn every_format_of_a_sparse_file_is_read() {
    let dir = temp_dir();
    let source = dir.path().join("source");
    fs::create_dir(&source).unwrap();
    tree::make_sparse(&source.join("sparse"));
    fs::write(source.join("after"), b"what follows it").unwrap();
    let expected = walk::tree(&source);
    for format in [
        &["--format=gnu", "--sparse"][..],
        &["--format=pax", "--sparse-version=0.0"],
        &["--format=pax", "--sparse-version=0.1"],
        &["--format=pax", "--sparse-version=1.0"],
    ] {
        let archive = dir.path().join("layer");
        tree::archive_as(&source, &archive, format);
        assert!(
            archive.metadata().unwrap().size() < 1 << 20,
            "the archive isn't sparse"
        );
        let out = dir.path().join("image");
        let image = build_layers(&[archive], &out, FsVersion::V6).unwrap();
        walk::assert_same(&expected, &walk::image(&image));
        fs::remove_dir_all(out).unwrap();
    }
}

#[test]
fn times_before_1970_and_fractions_of_seconds_are_kept() {
    let dir = temp_dir();
    let source = dir.path().join("source");
    fs::create_dir(&source).unwrap();
    for (name, seconds, nanos) in [("old", -86_400, 250_000_000), ("new", 1_700_000_000, 123_456_789)] {
        let path = source.join(name);
        File::create(&path).unwrap();
        let time = rustix::fs::Timespec {
            tv_sec: seconds,
            tv_nsec: nanos,
        };
        let times = rustix::fs::Timestamps {
            last_access: time,
            last_modification: time,
        };
        rustix::fs::utimensat(rustix::fs::CWD, &path, &times, rustix::fs::AtFlags::empty()).unwrap();
    }
    let archive = dir.path().join("layer");
    tree::archive_as(&source, &archive, &["--format=pax"]);
    for version in [FsVersion::V5, FsVersion::V6] {
        let out = dir.path().join(version.to_string());
        let image = build_layers(std::slice::from_ref(&archive), &out, version).unwrap();
        assert_eq!(
            walk::times(&image),
            [
                (OsString::from("/new"), (1_700_000_000, 123_456_789)),
                (OsString::from("/old"), (-86_400, 250_000_000)),
            ]
        );
    }
}

#[test]
fn whiteouts_hide_lower_layers_and_nothing_else() {
    let dir = temp_dir();
    let mut lower = Archive::new();
    lower
        .dir("a/")
        .file("a/one", b"1")
        .file("a/two", b"2")
        .dir("b/")
        .file("b/three", b"3");
    lower.file("c", b"file").dir("d/").file("d/deep", b"4");
    let mut upper = Archive::new();
    // The file comes before what hides the lower one of its name.
    upper
        .file("a/one", b"new")
        .file("a/.wh.one", b"")
        .file("a/.wh.two", b"");
    upper.file("b/.wh..wh..opq", b"").file("b/four", b"4");
    upper
        .file(".wh.c", b"")
        .file(".wh.d", b"")
        .dir("d/")
        .file(".wh.not-there", b"");
    upper.file(".wh..wh.aufs", b"AUFS' own");
    assert_eq!(
        listing(dir.path(), &[&lower, &upper]),
        ["/", "/a/", "/a/one=new", "/b/", "/b/four=4", "/d/"]
    );
    // In the lowest layer there is nothing to hide.
    assert_eq!(
        listing(dir.path(), &[&upper]),
        ["/", "/a/", "/a/one=new", "/b/", "/b/four=4", "/d/"]
    );
}

#[test]
fn what_replaces_what_is_as_unpacking_would_have_it() {
    let dir = temp_dir();
    let mut lower = Archive::new();
    lower
        .dir("dir/")
        .file("dir/inside", b"1")
        .file("file", b"2")
        .symlink("link", "dir");
    let mut upper = Archive::new();
    // A file in place of a directory, a directory in place of a file and of a link, and the later of two.
    upper
        .file("dir", b"now a file")
        .dir("file/")
        .file("file/x", b"3")
        .dir("link/");
    upper.file("twice", b"first").file("twice", b"second");
    assert_eq!(
        listing(dir.path(), &[&lower, &upper]),
        [
            "/",
            "/dir=now a file",
            "/file/",
            "/file/x=3",
            "/link/",
            "/twice=second"
        ]
    );
}

#[test]
fn links_on_the_way_are_followed_inside_the_root() {
    let dir = temp_dir();
    let mut lower = Archive::new();
    lower
        .dir("usr/")
        .dir("usr/lib/")
        .symlink("lib", "usr/lib")
        .symlink("usr/up", "../../../../etc");
    lower.symlink("abs", "/usr/new");
    let mut upper = Archive::new();
    upper
        .file("lib/one", b"1")
        .file("usr/up/two", b"2")
        .file("abs/three", b"3")
        .file("/four", b"4");
    assert_eq!(
        listing(dir.path(), &[&lower, &upper]),
        [
            "/",
            "/abs->/usr/new",
            "/etc/",
            "/etc/two=2",
            "/four=4",
            "/lib->usr/lib",
            "/usr/",
            "/usr/lib/",
            "/usr/lib/one=1",
            "/usr/new/",
            "/usr/new/three=3",
            "/usr/up->../../../../etc"
        ]
    );
}

#[test]
fn hard_links_reach_lower_layers_and_survive_there() {
    for version in [FsVersion::V5, FsVersion::V6] {
        let dir = temp_dir();
        let mut lower = Archive::new();
        lower
            .dir("a/")
            .file("a/file", b"content")
            .link("a/second", "a/file")
            .symlink("s", "a");
        let mut upper = Archive::new();
        upper
            .link("third", "a/file")
            .link("fourth", "s/second")
            .file("a/.wh.file", b"");
        let layers = [
            lower.write(dir.path().join("0")),
            upper.write(dir.path().join("1")),
        ];
        let image = build_layers(&layers, &dir.path().join("image"), version).unwrap();
        assert_eq!(
            walk::list(&image),
            [
                "/",
                "/a/",
                "/a/second=content",
                "/fourth=content",
                "/s->a",
                "/third=content"
            ]
        );
        assert_eq!(
            walk::links(&image),
            [
                ("/a/second".into(), 3, "/a/second".into()),
                ("/fourth".into(), 3, "/a/second".into()),
                ("/third".into(), 3, "/a/second".into())
            ]
        );
    }
}

#[test]
fn an_opaque_marker_hides_no_link_of_its_own_layer() {
    let dir = temp_dir();
    let mut lower = Archive::new();
    lower
        .file("kept", b"linked")
        .file("d/hidden", b"x")
        .file("d/same", b"y");
    let mut upper = Archive::new();
    // The linked file is the lower layer's, its further name this one's.
    upper
        .link("d/link", "kept")
        .link("d/same", "d/hidden")
        .file("d/.wh..wh..opq", b"");
    assert_eq!(
        listing(dir.path(), &[&lower, &upper]),
        ["/", "/d/", "/d/link=linked", "/d/same=x", "/kept=linked"]
    );
}

#[test]
fn a_directory_nobody_describes_keeps_the_lower_layers_attributes() {
    let dir = temp_dir();
    let source = dir.path().join("source");
    fs::create_dir_all(source.join("spool/deep")).unwrap();
    let mode = fs::Permissions::from_mode(0o1770);
    fs::set_permissions(source.join("spool"), mode).unwrap();
    let lower = dir.path().join("lower");
    tree::archive_as(&source, &lower, &[]);
    let mut upper = Archive::new();
    upper.file("spool/deep/er/file", b"x");
    let layers = [lower, upper.write(dir.path().join("upper"))];
    let image = build_layers(&layers, &dir.path().join("image"), FsVersion::V6).unwrap();
    assert_eq!(walk::mode(&image, "/spool"), 0o41770);
    assert_eq!(walk::mode(&image, "/spool/deep/er"), 0o40755);
}

#[test]
fn hostile_entries_are_refused_by_name() {
    type Made = fn(&mut Archive) -> &mut Archive;
    let cases: [(&str, EntryProblem, Made); 8] = [
        ("a/../../b", EntryProblem::ParentComponent, |a| {
            a.file("a/../../b", b"")
        }),
        ("l", EntryProblem::ParentComponent, |a| {
            a.link("l", "../../etc/passwd")
        }),
        ("l", EntryProblem::LinkTarget, |a| a.link("l", "not-there")),
        ("l", EntryProblem::LinkTarget, |a| a.dir("d/").link("l", "d")),
        ("f/x", EntryProblem::ThroughFile, |a| {
            a.file("f", b"").file("f/x", b"")
        }),
        ("a/x", EntryProblem::SymlinkLoop, |a| {
            a.symlink("a", "b").symlink("b", "a").file("a/x", b"")
        }),
        (".wh...", EntryProblem::Whiteout, |a| a.file(".wh...", b"")),
        ("./", EntryProblem::Root, |a| a.symlink("./", "/etc")),
    ];
    for (name, expected, made) in cases {
        let dir = temp_dir();
        let mut archive = Archive::new();
        made(&mut archive);
        let layer = archive.write(dir.path().join("layer"));
        let error = build_layers(&[layer], &dir.path().join("image"), FsVersion::V6).unwrap_err();
        let BuildError::Layer {
            source: LayerError::Entry { entry, problem },
            ..
        } = error
        else {
            panic!("{name}: {error}");
        };
        assert_eq!(problem, expected, "{name}");
        assert!(
            entry == Path::new(name) || entry == Path::new(""),
            "{name}: {}",
            entry.display()
        );
        assert_eq!(names(dir.path()), ["layer"]);
    }
}

#[test]
fn damaged_archives_are_refused_and_leave_nothing() {
    let dir = temp_dir();
    let source = dir.path().join("source");
    fs::create_dir(&source).unwrap();
    tree::make(&source);
    for compression in ["--no-auto-compress", "--gzip", "--zstd"] {
        let layer = dir.path().join("layer");
        tree::archive_as(&source, &layer, &[compression]);
        let whole = fs::read(&layer).unwrap();
        for length in [whole.len() * 2 / 3, 700] {
            fs::write(&layer, &whole[..length]).unwrap();
            let error = build_layers(
                std::slice::from_ref(&layer),
                &dir.path().join("image"),
                FsVersion::V6,
            )
            .unwrap_err();
            assert!(
                matches!(&error, BuildError::Layer { path, source: LayerError::Unreadable { .. } } if *path == layer),
                "{compression} {length}: {error:?}"
            );
        }
        let mut wrong = whole.clone();
        let middle = wrong.len() / 2;
        wrong[middle..middle + 2000].fill(0x55);
        fs::write(&layer, &wrong).unwrap();
        let failed = build_layers(
            std::slice::from_ref(&layer),
            &dir.path().join("image"),
            FsVersion::V6,
        );
        // Plain archives have no checksum over content; the others notice anything.
        assert!(failed.is_err() || compression == "--no-auto-compress");
        let _ = fs::remove_dir_all(dir.path().join("image"));
        fs::remove_file(&layer).unwrap();
        assert_eq!(names(dir.path()), ["source"]);
    }
    let layer = dir.path().join("layer");
    File::create(&layer).unwrap().write_all(&[0x41; 4096]).unwrap();
    let error = build_layers(&[layer], &dir.path().join("image"), FsVersion::V6).unwrap_err();
    assert!(
        matches!(
            &error,
            BuildError::Layer {
                source: LayerError::Damaged { .. },
                ..
            }
        ),
        "{error:?}"
    );
}

#[test]
fn what_a_layer_hides_a_hundred_thousand_times_is_hidden_once() {
    let dir = temp_dir();
    let mut lower = Archive::new();
    lower.dir("d").file("d/old", b"1");
    let mut upper = Archive::new();
    for number in 0..50_000 {
        upper
            .file(&format!("d/{number}"), b"")
            .file("d/.wh..wh..opq", b"");
    }
    let archives = [
        lower.write(dir.path().join("lower.tar")),
        upper.write(dir.path().join("upper.tar")),
    ];
    // A time that grows with the square of it would be minutes.
    let image = build_layers(&archives, &dir.path().join("image"), FsVersion::V6).unwrap();
    assert_eq!(image.summary().regular_files, 50_000);
}

#[test]
fn an_archive_may_end_where_its_last_content_does() {
    let dir = temp_dir();
    let mut archive = Archive::new();
    let layer = archive.file("first", b"1").file("last", b"content");
    let layer = layer.write(dir.path().join("layer"));
    let whole = fs::read(&layer).unwrap();
    let content_end = 3 * 512 + 7;
    for length in [content_end, content_end + 100, 4 * 512, 4 * 512 + 512] {
        fs::write(&layer, &whole[..length]).unwrap();
        let out = dir.path().join(format!("image-{length}"));
        let image = build_layers(std::slice::from_ref(&layer), &out, FsVersion::V6).unwrap();
        assert_eq!(walk::list(&image), ["/", "/first=1", "/last=content"], "{length}");
    }
    fs::write(&layer, &whole[..content_end - 1]).unwrap();
    build_layers(&[layer], &dir.path().join("image"), FsVersion::V6).unwrap_err();
}

#[test]
fn a_hundred_thousand_entries_in_one_directory_are_an_image() {
    let dir = temp_dir();
    let mut archive = Archive::new();
    for number in 0..100_000_u64 {
        // Not in the order of names.
        archive.symlink(&format!("d/{:06}", number * 48_271 % 100_003), "x");
    }
    let layer = archive.write(dir.path().join("layer"));
    let image = build_layers(&[layer], &dir.path().join("image"), FsVersion::V6).unwrap();
    assert_eq!(image.summary().symlinks, 100_000);
}

#[test]
fn a_second_name_of_a_symbolic_link_is_a_link_too() {
    let dir = temp_dir();
    let source = dir.path().join("source");
    fs::create_dir(&source).unwrap();
    symlink("nowhere", source.join("link")).unwrap();
    fs::hard_link(source.join("link"), source.join("second")).unwrap();
    let archive = dir.path().join("layer");
    tree::archive_as(&source, &archive, &[]);
    let image = build_layers(&[archive], &dir.path().join("image"), FsVersion::V6).unwrap();
    assert_eq!(walk::list(&image), ["/", "/link->nowhere", "/second->nowhere"]);
}

/// Whatever their header says, as for extractors.
#[test]
fn symbolic_links_have_all_permissions() {
    let dir = temp_dir();
    let mut archive = tar::Builder::new(Vec::new());
    let mut header = tar::Header::new_ustar();
    header.set_entry_type(tar::EntryType::Symlink);
    header.set_mode(0o4644);
    header.set_size(0);
    archive.append_link(&mut header, "link", "target").unwrap();
    let layer = dir.path().join("layer");
    fs::write(&layer, archive.into_inner().unwrap()).unwrap();
    let extracted = dir.path().join("extracted");
    fs::create_dir(&extracted).unwrap();
    symlink("target", extracted.join("link")).unwrap();
    let image = build_layers(&[layer], &dir.path().join("image"), FsVersion::V6).unwrap();
    let mode = |files: &walk::Entries| files[Path::new("/link")].mode;
    assert_eq!(mode(&walk::image(&image)), mode(&walk::tree(&extracted)));
}
