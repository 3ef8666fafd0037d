//! What went into an image comes out of it, from a directory and from an archive, in every format.

use std::fs;

use nydusbox_image::source::{AccessOptions, ImageRef, rafs_backend};
use nydusbox_image::{
    BlobsAt, BuildConfig, BuildSummary, ChunkSize, Compressor, FsVersion, ImageDir, Quiet, RafsConfig,
    RafsFormat, Source, build,
};

use crate::{names, temp_dir, tree, walk};

#[test]
fn a_directory_is_kept_in_all_its_attributes() {
    for version in [FsVersion::V5, FsVersion::V6] {
        let dir = temp_dir();
        let source = dir.path().join("source");
        fs::create_dir(&source).unwrap();
        let made = tree::make(&source);
        tree::add_linked_attribute(&source);
        let sockets = tree::add_unarchivable(&source);
        let out = dir.path().join("image");
        let config = BuildConfig::new(Source::detect(&source).unwrap(), &out)
            .format(RafsFormat::default().fs_version(version));
        let summary = build(&config, &Quiet).unwrap();

        let image = ImageDir::open(&out).unwrap();
        assert_eq!(image.summary(), &summary);
        assert_eq!(image.fs_version(), version);
        walk::assert_same(&walk::tree(&source), &walk::image(&image));
        assert_eq!(summary.regular_files, made.regular_files);
        assert_eq!(summary.directories, made.directories);
        assert_eq!(summary.symlinks, made.symlinks);
        assert_eq!(summary.others, made.others + sockets);
        assert_eq!(summary.hard_links, made.hard_links);

        assert_eq!(names(dir.path()), ["image", "source"]);
        assert_eq!(names(&out), ["blobs", "image.boot", "image.json"]);
        assert_eq!(
            names(&out.join("blobs")),
            summary.blobs.iter().map(|blob| &*blob.id).collect::<Vec<_>>()
        );
    }
}

#[test]
fn an_archive_gives_the_image_of_its_directory() {
    for version in [FsVersion::V5, FsVersion::V6] {
        for gzip in [false, true] {
            let dir = temp_dir();
            let source = dir.path().join("source");
            fs::create_dir(&source).unwrap();
            tree::make(&source);
            tree::add_linked_attribute(&source);
            // Named for neither, so that only the content tells.
            let archive = dir.path().join("archive");
            tree::archive(&source, &archive, gzip);
            let out = dir.path().join("image");
            let config = BuildConfig::new(Source::detect(&archive).unwrap(), &out)
                .format(RafsFormat::default().fs_version(version));
            build(&config, &Quiet).unwrap();
            walk::assert_same(&walk::tree(&source), &walk::image(&ImageDir::open(&out).unwrap()));
        }
    }
}

#[test]
fn every_compressor_and_chunk_size_keeps_the_content() {
    let dir = temp_dir();
    let source = dir.path().join("source");
    fs::create_dir(&source).unwrap();
    tree::make(&source);
    let expected = walk::tree(&source);
    for compressor in [Compressor::None, Compressor::Lz4Block, Compressor::Zstd] {
        for chunk_bytes in [4 << 10, 1 << 20, 16 << 20] {
            let out = dir.path().join("image");
            let config = BuildConfig::new(Source::Directory(source.clone()), &out)
                .format(
                    RafsFormat::default()
                        .compressor(compressor)
                        .chunk_size(ChunkSize::new(chunk_bytes).unwrap()),
                )
                .force(true);
            build(&config, &Quiet).unwrap();
            walk::assert_same(&expected, &walk::image(&ImageDir::open(&out).unwrap()));
        }
    }
}

#[test]
fn compression_and_deduplication_make_the_image_smaller() {
    let dir = temp_dir();
    let source = dir.path().join("source");
    fs::create_dir(&source).unwrap();
    let megabyte = tree::noise(7, 1 << 20);
    for name in ["one", "two", "three"] {
        fs::write(source.join(name), &megabyte).unwrap();
    }
    fs::write(source.join("zeros"), vec![0; 1 << 20]).unwrap();
    let summary = build(
        &BuildConfig::new(Source::Directory(source), dir.path().join("image")),
        &Quiet,
    )
    .unwrap();
    assert_eq!(summary.uncompressed_bytes, 4 << 20);
    assert_eq!(summary.chunks, 2);
    assert!(
        (1 << 20..1_100_000).contains(&summary.compressed_bytes),
        "{summary:?}"
    );
}

#[test]
fn the_same_directory_gives_the_same_image() {
    let dir = temp_dir();
    let source = dir.path().join("source");
    fs::create_dir(&source).unwrap();
    fs::write(source.join("file"), b"content").unwrap();
    let build_to = |name: &str| -> (BuildSummary, Vec<u8>) {
        let out = dir.path().join(name);
        let summary = build(&BuildConfig::new(Source::Directory(source.clone()), &out), &Quiet).unwrap();
        (summary, fs::read(out.join("image.boot")).unwrap())
    };
    assert!(build_to("one") == build_to("two"));
}

#[test]
fn a_directory_without_content_gives_an_image_without_blobs() {
    let dir = temp_dir();
    let source = dir.path().join("source");
    fs::create_dir(&source).unwrap();
    for version in [FsVersion::V5, FsVersion::V6] {
        let out = dir.path().join(version.to_string());
        let config = BuildConfig::new(Source::Directory(source.clone()), &out)
            .format(RafsFormat::default().fs_version(version));
        let summary = build(&config, &Quiet).unwrap();
        assert_eq!(
            (summary.directories, summary.regular_files, summary.chunks),
            (1, 0, 0)
        );
        assert!(summary.blobs.is_empty());
        assert!(names(&out.join("blobs")).is_empty());
        ImageDir::open(&out).unwrap();
    }
}

#[test]
fn a_symbolic_link_to_the_source_is_followed() {
    let dir = temp_dir();
    let source = dir.path().join("source");
    fs::create_dir(&source).unwrap();
    fs::write(source.join("file"), b"content").unwrap();
    let link = dir.path().join("link");
    std::os::unix::fs::symlink("source", &link).unwrap();
    let out = dir.path().join("image");
    build(&BuildConfig::new(Source::detect(&link).unwrap(), &out), &Quiet).unwrap();
    walk::assert_same(&walk::tree(&source), &walk::image(&ImageDir::open(&out).unwrap()));
}

#[test]
fn a_daemon_accepts_the_configuration() {
    let dir = temp_dir();
    let source = dir.path().join("source");
    fs::create_dir(&source).unwrap();
    let out = dir.path().join("image");
    build(&BuildConfig::new(Source::Directory(source), &out), &Quiet).unwrap();
    let image = ImageDir::open(&out).unwrap();
    let cache = dir.path().join("cache");
    let mut served = RafsConfig {
        id: "an-id",
        blobs: BlobsAt::Directory(&image.blob_dir()),
        cache_dir: &cache,
        prefetch: false,
    };
    let text = served.to_json().unwrap();

    let config: nydus_api::ConfigV2 = text.parse().unwrap();
    assert!(config.validate());
    assert_eq!(config.id, "an-id");
    let backend = config.get_backend_config().unwrap();
    assert_eq!(
        backend.get_localfs_config().unwrap().dir,
        image.blob_dir().to_str().unwrap()
    );
    assert_eq!(
        config.get_cache_working_directory().unwrap(),
        cache.to_str().unwrap()
    );
    let rafs = config.get_rafs_config().unwrap();
    assert!(rafs.enable_xattr && rafs.mode == "direct" && !rafs.prefetch.enable);
    assert!(rafs.user_io_batch_size > 0 && rafs.prefetch.batch_size > 0);
    assert!(config.get_cache_config().unwrap().prefetch.batch_size > 0);

    served.prefetch = true;
    let config: nydus_api::ConfigV2 = served.to_json().unwrap().parse().unwrap();
    assert!(config.get_rafs_config().unwrap().prefetch.enable);
    assert!(config.get_cache_config().unwrap().prefetch.enable);
}

#[test]
fn a_daemon_accepts_a_registry_as_the_place_of_blobs() {
    let dir = temp_dir();
    let auth_file = dir.path().join("config.json");
    // "user:a password", as docker writes it.
    fs::write(
        &auth_file,
        r#"{"auths":{"localhost:5000":{"auth":"dXNlcjphIHBhc3N3b3Jk"}}}"#,
    )
    .unwrap();
    let ImageRef::Docker { name } = "docker://localhost:5000/a/b:1".parse().unwrap() else {
        panic!("another kind")
    };
    let mut access = AccessOptions::default();
    access.auth_file = Some(auth_file);
    let registry = rafs_backend(&name, &access).unwrap();
    let served = RafsConfig {
        id: "an-id",
        blobs: BlobsAt::Registry(&registry),
        cache_dir: dir.path(),
        prefetch: true,
    };
    let config: nydus_api::ConfigV2 = served.to_json().unwrap().parse().unwrap();
    assert!(config.validate());
    let registry = config
        .get_backend_config()
        .unwrap()
        .get_registry_config()
        .unwrap();
    assert_eq!(
        (
            registry.scheme.as_str(),
            registry.host.as_str(),
            registry.repo.as_str()
        ),
        ("http", "localhost:5000", "a/b")
    );
    assert_eq!(registry.auth.as_deref(), Some("dXNlcjphIHBhc3N3b3Jk"));
    assert!(!format!("{served:?}").contains("dXNlcjph"));
}
