#![expect(clippy::unwrap_used, reason = "a panic is how a test fails")]

use std::collections::HashMap;

use serde_json::{Value, json};

use super::*;

/// Blobs in memory.
#[derive(Default)]
struct Memory(HashMap<String, Vec<u8>>);

impl Memory {
    fn put(&mut self, media_type: &str, document: &Value) -> Value {
        let bytes = serde_json::to_vec(document).unwrap();
        let digest = sha256_of(&bytes).to_string();
        let size = bytes.len();
        self.0.insert(digest.clone(), bytes);
        json!({"mediaType": media_type, "digest": digest, "size": size})
    }

    fn resolve(&self, root: &Value) -> Result<SourceImage, SourceError> {
        let root = Document::named(serde_json::to_vec(root).unwrap(), None);
        resolve(root, &"linux/amd64".parse().unwrap(), &|descriptor| {
            let bytes = self.0.get(descriptor.digest().as_ref());
            let bytes = bytes.ok_or_else(|| SourceError::MissingBlob {
                digest: descriptor.digest().clone(),
            })?;
            verified(std::io::Cursor::new(bytes.clone()), descriptor)
        })
    }
}

const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const INDEX: &str = "application/vnd.oci.image.index.v1+json";

fn config(diff_ids: usize) -> Value {
    let diff_id = sha256_of(b"layer").to_string();
    json!({
        "architecture": "amd64", "os": "linux",
        "rootfs": {"type": "layers", "diff_ids": vec![diff_id; diff_ids]},
    })
}

fn manifest(memory: &mut Memory, layers: usize) -> Value {
    let config = memory.put("application/vnd.oci.image.config.v1+json", &config(1));
    let layer = json!({
        "mediaType": "application/vnd.oci.image.layer.v1.tar",
        "digest": sha256_of(b"layer").to_string(), "size": 5,
    });
    json!({"schemaVersion": 2, "mediaType": MANIFEST, "config": config, "layers": vec![layer; layers]})
}

fn index_of(entries: &[Value]) -> Value {
    json!({"schemaVersion": 2, "manifests": entries})
}

#[test]
fn an_index_leads_to_the_manifest_of_the_platform_whoever_names_the_types() {
    for docker in [false, true] {
        let mut memory = Memory::default();
        let mut manifest = manifest(&mut memory, 1);
        let media_type = if docker { DOCKER_MANIFEST } else { MANIFEST };
        manifest["mediaType"] = media_type.into();
        let mut entry = memory.put(media_type, &manifest);
        entry["platform"] = json!({"os": "linux", "architecture": "amd64"});
        let mut other = entry.clone();
        other["platform"] = json!({"os": "linux", "architecture": "s390x"});
        other["digest"] = sha256_of(b"another").to_string().into();
        let mut index = index_of(&[other, entry.clone()]);
        index["mediaType"] = if docker { DOCKER_INDEX } else { INDEX }.into();

        let image = memory.resolve(&index).unwrap();
        assert_eq!(image.digest.as_ref(), entry["digest"]);
        assert_eq!(image.media_type.as_ref(), media_type);
        assert_eq!(image.layers().len(), 1);
        assert_eq!(image.digest, sha256_of(&image.manifest_bytes));
    }
}

#[test]
fn an_index_without_a_platform_is_looked_into_where_nothing_else_fits() {
    let mut memory = Memory::default();
    let good = manifest(&mut memory, 1);
    let entry = |memory: &mut Memory, architecture: &str| {
        let mut entry = memory.put(MANIFEST, &good);
        entry["platform"] = json!({"os": "linux", "architecture": architecture});
        entry
    };
    let of = |memory: &mut Memory, architectures: &[&str]| {
        let entries: Vec<_> = architectures.iter().map(|one| entry(memory, one)).collect();
        memory.put(INDEX, &index_of(&entries))
    };
    let (arm, intel) = (
        of(&mut memory, &["arm64", "riscv64"]),
        of(&mut memory, &["amd64"]),
    );
    let inner = memory.put(DOCKER_INDEX, &index_of(&[arm.clone(), intel.clone()]));
    let s390 = entry(&mut memory, "s390x");
    let image = memory.resolve(&index_of(&[s390.clone(), inner])).unwrap();
    assert_eq!(image.digest.to_string(), s390["digest"]);
    assert_eq!(
        memory
            .resolve(&index_of(&[s390.clone(), arm]))
            .unwrap_err()
            .to_string(),
        "there is no image for linux/amd64; there is one for linux/s390x, linux/arm64, linux/riscv64"
    );
    // One that is for something else is not.
    let mut other = intel;
    other["platform"] = json!({"os": "linux", "architecture": "arm64"});
    assert!(matches!(
        memory.resolve(&index_of(&[s390, other])),
        Err(SourceError::NoSuchPlatform { .. })
    ));
}

#[test]
fn indexes_that_name_each_other_are_not_looked_into_without_end() {
    let mut memory = Memory::default();
    let arm = {
        let mut entry = memory.put(MANIFEST, &json!({}));
        entry["platform"] = json!({"os": "linux", "architecture": "arm64"});
        entry
    };
    let mut index = index_of(&vec![arm; 2]);
    for _ in 0..MAX_DEPTH - 1 {
        index = index_of(&vec![memory.put(INDEX, &index); 200]);
    }
    let asked = std::cell::Cell::new(0);
    let root = Document::named(serde_json::to_vec(&index).unwrap(), None);
    let resolved = resolve(root, &"linux/amd64".parse().unwrap(), &|descriptor| {
        asked.set(asked.get() + 1);
        let bytes = memory.0[descriptor.digest().as_ref()].clone();
        verified(std::io::Cursor::new(bytes), descriptor)
    });
    assert!(
        matches!(resolved, Err(SourceError::NoSuchPlatform { .. })),
        "{resolved:?}"
    );
    assert_eq!(asked.get(), MAX_GUESSES);
}

#[test]
fn what_cannot_be_an_image_is_refused_with_what_is_wrong() {
    let mut memory = Memory::default();
    let good = manifest(&mut memory, 1);
    let digest = |document: &Value| sha256_of(&serde_json::to_vec(document).unwrap());

    let mut two_faced = good.clone();
    two_faced["manifests"] = json!([]);
    let lying = manifest(&mut memory, 3);
    let mut vast = good.clone();
    vast["config"]["size"] = json!(1_u64 << 40);
    let mut schema1 = good.clone();
    schema1["mediaType"] = "application/vnd.docker.distribution.manifest.v1+json".into();
    let mut traversal = good.clone();
    traversal["config"]["digest"] = "sha256:../../../etc/passwd".into();
    let mut weak = good.clone();
    weak["config"]["digest"] = "md5:0123456789abcdef0123456789abcdef".into();
    let mut short = good.clone();
    short["config"]["size"] = json!(7);
    let mut elsewhere = memory.put(MANIFEST, &good);
    elsewhere["platform"] = json!({"os": "linux", "architecture": "riscv64"});
    let mut nested = index_of(&[memory.put(MANIFEST, &good)]);
    for _ in 0..MAX_DEPTH {
        nested = index_of(&[memory.put(INDEX, &nested)]);
    }

    let sentence = |document: &Value| memory.resolve(document).unwrap_err().to_string();
    assert_eq!(
        sentence(&two_faced),
        format!("manifest {} is both a manifest and an index", digest(&two_faced))
    );
    assert_eq!(sentence(&lying), "the manifest has 3 layers, its configuration 1");
    assert!(sentence(&vast).ends_with("has 1099511627776 bytes; more than 4194304 are not read"));
    assert!(sentence(&schema1).ends_with(
        "has the media type \"application/vnd.docker.distribution.manifest.v1+json\", which is not supported"
    ));
    assert!(sentence(&traversal).ends_with("is malformed"));
    // No such blob, before anybody asks whether its digest could be checked.
    assert_eq!(
        sentence(&weak),
        "blob md5:0123456789abcdef0123456789abcdef is missing"
    );
    assert!(matches!(memory.resolve(&short), Err(SourceError::Blob { .. })));
    assert_eq!(
        sentence(&index_of(&[elsewhere])),
        "there is no image for linux/amd64; there is one for linux/riscv64"
    );
    assert!(sentence(&nested).ends_with("is nested too deeply"));
    assert!(sentence(&json!([])).ends_with("is malformed"));
}
