//! What the image store makes of gzipped layers: they stay as they are, with an index each.

use std::fs;
use std::path::Path;

use nydusbox_image::source::{AccessOptions, Descriptor, ImageRef, MediaType, open_source};
use nydusbox_image::{
    ConvertConfig, GcConfig, GetRequest, ImageUse, Mode, PullPolicy, Quiet, Store, StoreError, StoredKind,
};

use crate::layout::{archive, write_layout};
use crate::oci::{self, layout_ref, reference};
use crate::reference::gzip;
use crate::store::{checked, files, platform, request};
use crate::{temp_dir, tree};

/// An image of gzipped layers of one file each, and those layers.
fn make(layout: &Path, tag: &str, files: &[(&str, &[u8])]) -> (ImageRef, Vec<Descriptor>) {
    let layers: Vec<_> = files.iter().map(|file| gzip(&archive(&[*file]))).collect();
    let layers: Vec<_> = layers
        .iter()
        .map(|layer| (MediaType::ImageLayerGzip, layer.as_slice()))
        .collect();
    let reference = write_layout(layout, tag, &layers);
    let source = open_source(&reference, &AccessOptions::default()).unwrap();
    let layers = source.image(&platform()).unwrap().layers().to_vec();
    (reference, layers)
}

fn has(store: &Store, layer: &Descriptor) -> bool {
    let path = store.path().join("blobs/sha256").join(layer.digest().digest());
    fs::metadata(path).is_ok_and(|meta| meta.len() == layer.size())
}

fn nothing() -> std::io::Result<Vec<ImageUse>> {
    Ok(Vec::new())
}

#[test]
fn gzipped_layers_stay_as_they_are_for_as_long_as_an_image_needs_them() {
    let dir = temp_dir();
    let layout = dir.path().join("layout");
    let (base, top) = (tree::noise(1, 400_000), tree::noise(2, 300_000));
    let (one, layers) = make(&layout, "one", &[("base", &base), ("one", &top)]);
    let (two, others) = make(&layout, "two", &[("base", &base), ("two", b"2")]);
    assert_eq!(layers[0].digest(), others[0].digest());
    let store = Store::open(&dir.path().join("store")).unwrap();
    let image = store.get(&one, &request(), &Quiet).unwrap();
    assert_eq!(checked(&image), 2);
    assert!(layers.iter().all(|layer| has(&store, layer)));
    // They, and little more.
    let bytes: u64 = files(store.path()).values().sum();
    let layer_bytes: u64 = layers.iter().map(Descriptor::size).sum();
    assert!(bytes < layer_bytes + 100_000, "{bytes} for {layer_bytes}");
    assert!((layer_bytes..layer_bytes + 50_000).contains(&image.data_bytes));
    let listed = &store.list().unwrap()[0];
    assert_eq!(listed.kind, StoredKind::Converted);
    assert!(listed.here_bytes > layer_bytes);
    drop(image);
    let second = store.get(&two, &request(), &Quiet).unwrap();
    assert_eq!(checked(&second), 2);

    // Nothing of them is elsewhere.
    fs::remove_dir_all(&layout).unwrap();
    store.gc(GcConfig::default(), &nothing, &Quiet).unwrap();
    store
        .remove(std::slice::from_ref(&one), &nothing, &Quiet)
        .unwrap();
    assert!(has(&store, &layers[0]) && !has(&store, &layers[1]));
    assert_eq!(checked(&second), 2);
    let never = request().policy(PullPolicy::Never);
    checked(&store.get(&two, &never, &Quiet).unwrap());
    // Who uses it needs them also if no name does.
    let bootstrap = second.bootstrap.clone();
    drop(second);
    let in_use = || {
        Ok(vec![ImageUse {
            bootstrap: bootstrap.clone(),
            by: "sandbox s1".to_owned(),
        }])
    };
    for record in fs::read_dir(store.path().join("refs")).unwrap() {
        fs::remove_file(record.unwrap().path()).unwrap();
    }
    store.gc(GcConfig::default(), &in_use, &Quiet).unwrap();
    assert!(others.iter().all(|layer| has(&store, layer)));
    store.gc(GcConfig::default(), &nothing, &Quiet).unwrap();
    assert_eq!(
        files(&store.path().join("blobs")).len(),
        0,
        "nobody needs anything"
    );
}

#[test]
fn a_layer_that_is_gone_or_cut_is_fetched_again() {
    let dir = temp_dir();
    let (of, layers) = make(
        &dir.path().join("layout"),
        "of",
        &[("a", &tree::noise(3, 200_000))],
    );
    let store = Store::open(&dir.path().join("store")).unwrap();
    drop(store.get(&of, &request(), &Quiet).unwrap());
    let path = store
        .path()
        .join("blobs/sha256")
        .join(layers[0].digest().digest());
    for damage in [None, Some(100)] {
        match damage {
            None => fs::remove_file(&path).unwrap(),
            Some(len) => fs::OpenOptions::new()
                .write(true)
                .open(&path)
                .unwrap()
                .set_len(len)
                .unwrap(),
        }
        checked(&store.get(&of, &request(), &Quiet).unwrap());
        assert!(has(&store, &layers[0]));
    }
}

#[test]
fn who_wants_blobs_of_their_own_gets_them_and_what_is_here_stays() {
    let dir = temp_dir();
    let layout = dir.path().join("layout");
    let content = tree::noise(4, 200_000);
    let (of, layers) = make(&layout, "of", &[("a", &content)]);
    let native = GetRequest::converted_by(ConvertConfig::new(platform()).mode(Mode::Native));
    let store = Store::open(&dir.path().join("store")).unwrap();
    let image = store.get(&of, &native, &Quiet).unwrap();
    assert_eq!(checked(&image), 1);
    assert!(!has(&store, &layers[0]));
    let before = files(store.path());
    let again = store.get(&of, &request(), &Quiet).unwrap();
    assert_eq!(again.digest, image.digest);
    assert_eq!(files(store.path()), before);
}

/// An image by reference in a layout of its own, and the layers that it refers to.
fn make_referring(dir: &Path) -> (ImageRef, Vec<Descriptor>) {
    let files: [(&str, &[u8]); 2] = [("a", &tree::noise(5, 300_000)), ("b", &tree::noise(6, 200_000))];
    let (of, layers) = make(&dir.join("layout"), "of", &files);
    let to = layout_ref(&dir.join("nydus"), "by-ref");
    oci::convert_to(&of, &to, &oci::config().mode(Mode::Reference), &Quiet).unwrap();
    (to, layers)
}

/// The same as an archive.
fn archived(dir: &Path) -> ImageRef {
    let file = dir.join("nydus.tar");
    let mut tar = tar::Builder::new(fs::File::create(&file).unwrap());
    tar.append_dir_all(".", dir.join("nydus")).unwrap();
    tar.finish().unwrap();
    reference(&format!("oci-archive:{}:by-ref", file.display()))
}

#[test]
fn an_archived_image_by_reference_is_copied_with_the_layers_it_refers_to() {
    let dir = temp_dir();
    let (_, layers) = make_referring(dir.path());
    let archive = archived(dir.path());
    let store = Store::open(&dir.path().join("store")).unwrap();
    let image = store.get(&archive, &request(), &Quiet).unwrap();
    assert_eq!(checked(&image), 2);
    assert!(layers.iter().all(|layer| has(&store, layer)));
    let layer_bytes: u64 = layers.iter().map(Descriptor::size).sum();
    assert!(image.data_bytes > layer_bytes);
    let listed = &store.list().unwrap()[0];
    assert_eq!(listed.kind, StoredKind::Copied);
    assert!(listed.here_bytes > layer_bytes);
    drop(image);
    store.gc(GcConfig::default(), &nothing, &Quiet).unwrap();
    assert!(layers.iter().all(|layer| has(&store, layer)));

    // One that is gone is copied again, and is asked for where nothing may be copied.
    let gone = store
        .path()
        .join("blobs/sha256")
        .join(layers[1].digest().digest());
    fs::remove_file(&gone).unwrap();
    let never = request().policy(PullPolicy::Never);
    let refused = store.get(&archive, &never, &Quiet).unwrap_err();
    assert!(matches!(refused, StoreError::NotHere { .. }), "{refused}");
    checked(&store.get(&archive, &request(), &Quiet).unwrap());
    assert!(gone.exists());
}

#[test]
fn an_image_by_reference_without_a_layer_it_refers_to_is_not_ready() {
    let dir = temp_dir();
    let (layout, layers) = make_referring(dir.path());
    let store = Store::open(&dir.path().join("store")).unwrap();
    checked(&store.get(&layout, &request(), &Quiet).unwrap());
    // As skopeo copies it, which knows the manifest only.
    let blobs = oci::blobs(&dir.path().join("nydus"));
    fs::remove_file(blobs.join(layers[0].digest().digest())).unwrap();
    let archive = archived(dir.path());
    for (reference, place) in [(layout, blobs), (archive, dir.path().join("nydus.tar"))] {
        assert_eq!(
            store.get(&reference, &request(), &Quiet).unwrap_err().to_string(),
            format!(
                "{reference} has its data in the layer {}, which is not whole in {}",
                layers[0].digest(),
                place.display()
            )
        );
    }
}
