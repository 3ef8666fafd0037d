//! Whether a VMM that somebody else configures can carry the share.
//!
//! What this crate writes is right by construction. Runtimes and people write their own, and then a VM starts and the
//! guest hangs in its first mount: the daemon can't map memory that isn't shared, its rings end at
//! [`MAX_QUEUE_SIZE`](crate::MAX_QUEUE_SIZE), it has as many request queues as it was started with (a nydusd one), and
//! maps nothing for DAX. These functions read such a configuration and say all that is wrong with it.

use std::collections::HashMap;

use serde_json::{Map, Value};

use crate::{QueueSize, QueueSizeError};

/// One thing with which the share will not work.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Unfit {
    /// No virtio-fs device on a vhost-user socket.
    #[error("there is no vhost-user-fs device")]
    NoShare,
    /// Nothing mounts the share in the guest.
    #[error("there is no storage of type virtiofs")]
    NoStorage,
    /// The daemon could not map the guest's memory.
    #[error("the guest's memory is not shared: {found}")]
    MemoryNotShared {
        /// What stands there instead of a shared memory.
        found: String,
    },
    /// More entries than the daemon's rings have, or no power of two.
    #[error("device {device}: {error}")]
    QueueSize {
        /// The device, by its tag or place.
        device: String,
        /// What is wrong.
        error: QueueSizeError,
    },
    /// A queue size that is no 16-bit number.
    #[error("device {device}: the queue size is not a number")]
    QueueSizeText {
        /// The device, by its tag or place.
        device: String,
    },
    /// None, or more than the daemon serves; a nydusd serves one.
    #[error("device {device} has {queues} request queues, and the daemon serves {served}")]
    Queues {
        /// The device, by its tag or place.
        device: String,
        /// How many.
        queues: u64,
        /// How many there can be.
        served: u64,
    },
    /// A DAX window, or a mount that asks for one.
    #[error("{place} asks for DAX ({word}), and the daemon maps nothing into the guest")]
    Dax {
        /// The device or storage.
        place: String,
        /// The option.
        word: String,
    },
}

/// Checks QEMU's command line, without the program's name, for a daemon that serves so many request queues.
#[must_use]
pub fn qemu<S: AsRef<str>>(arguments: &[S], served: u64) -> Vec<Unfit> {
    let mut unfit = Vec::new();
    let mut devices = 0;
    let mut backends: HashMap<String, String> = HashMap::new();
    let mut used = Vec::new();
    for pair in arguments.windows(2) {
        let (name, value) = (pair[0].as_ref(), pair[1].as_ref());
        let option = QemuOption::of(value);
        match name.strip_prefix("--").or_else(|| name.strip_prefix('-')) {
            Some("device") if option.head.starts_with("vhost-user-fs-") => {
                devices += 1;
                let device = option.get("tag").unwrap_or(&option.head).to_owned();
                if let Some(size) = option.get("queue-size") {
                    unfit.extend(queue_size(&device, size.parse().ok()));
                }
                if let Some(queues) = option.get("num-request-queues").and_then(|n| n.parse().ok()) {
                    unfit.extend(request_queues(&device, queues, served));
                }
                if option
                    .get("cache-size")
                    .is_some_and(|size| !size.trim_start_matches('0').is_empty())
                {
                    unfit.push(Unfit::Dax {
                        place: format!("device {device}"),
                        word: "cache-size".into(),
                    });
                }
            }
            Some("object") if option.head.starts_with("memory-backend-") => {
                if let Some(id) = option.get("id") {
                    backends.insert(id.to_owned(), value.to_owned());
                }
            }
            Some("machine" | "M") => used.extend(option.get("memory-backend").map(str::to_owned)),
            Some("numa") => used.extend(option.get("memdev").map(str::to_owned)),
            _ => {}
        }
    }
    if devices == 0 {
        unfit.push(Unfit::NoShare);
    }
    if used.is_empty() {
        let found = "neither -machine memory-backend= nor -numa memdev= names a memory backend".into();
        unfit.push(Unfit::MemoryNotShared { found });
    }
    for id in used {
        match backends.get(&id) {
            None => unfit.push(Unfit::MemoryNotShared {
                found: format!("there is no memory backend {id}"),
            }),
            Some(object) if is_shared(&QemuOption::of(object)) => {}
            Some(object) => unfit.push(Unfit::MemoryNotShared {
                found: object.clone(),
            }),
        }
    }
    unfit
}

/// A file is private unless said otherwise, a memfd shared; anonymous memory has nothing to hand over.
fn is_shared(object: &QemuOption) -> bool {
    match (object.head.as_str(), object.get("share")) {
        ("memory-backend-memfd" | "memory-backend-shm", None) => true,
        ("memory-backend-memfd" | "memory-backend-shm" | "memory-backend-file", Some(share)) => {
            matches!(share, "on" | "yes" | "true")
        }
        _ => false,
    }
}

/// `head,key=value,…`, a comma in a value being written twice, or an object of JSON, as libvirt writes it.
struct QemuOption {
    head: String,
    pairs: Vec<(String, String)>,
}

impl QemuOption {
    fn of(text: &str) -> Self {
        if text.starts_with('{') {
            return Self::of_json(text);
        }
        let mut parts = vec![String::new()];
        let mut chars = text.chars().peekable();
        while let Some(c) = chars.next() {
            if c == ',' && chars.next_if_eq(&',').is_none() {
                parts.push(String::new());
            } else if let Some(part) = parts.last_mut() {
                part.push(c);
            }
        }
        let pairs = parts
            .iter()
            .filter_map(|part| part.split_once('='))
            .map(|(key, value)| (key.to_owned(), value.to_owned()))
            .collect();
        let head = parts.swap_remove(0);
        Self { head, pairs }
    }

    fn of_json(text: &str) -> Self {
        let word = |value: Value| match value {
            Value::String(word) => word,
            other => other.to_string(),
        };
        // QEMU itself does not start with what is none.
        let object: Map<String, Value> = serde_json::from_str(text).unwrap_or_default();
        let pairs: Vec<_> = object
            .into_iter()
            .map(|(key, value)| (key, word(value)))
            .collect();
        let head = pairs
            .iter()
            .find(|(key, _)| ["driver", "qom-type", "type"].contains(&key.as_str()));
        let head = head.map_or_else(String::new, |(_, name)| name.clone());
        Self { head, pairs }
    }

    fn get(&self, key: &str) -> Option<&str> {
        self.pairs
            .iter()
            .rev()
            .find(|(k, _)| k == key)
            .map(|(_, value)| value.as_str())
    }
}

/// Checks Cloud Hypervisor's `VmConfig`, as `vm.create` takes and `vm.info` shows it, for a daemon that serves so many
/// request queues.
#[must_use]
pub fn cloud_hypervisor(config: &Value, served: u64) -> Vec<Unfit> {
    let mut unfit = Vec::new();
    let memory = &config["memory"];
    let zones = memory["zones"].as_array().filter(|zones| !zones.is_empty());
    let shared = |part: &Value| part["shared"] == Value::Bool(true);
    match zones {
        None if !shared(memory) => {
            unfit.push(Unfit::MemoryNotShared {
                found: "memory.shared is not true".into(),
            });
        }
        None => {}
        Some(zones) => {
            for (at, _) in zones.iter().enumerate().filter(|(_, zone)| !shared(zone)) {
                let found = format!("memory.zones[{at}].shared is not true");
                unfit.push(Unfit::MemoryNotShared { found });
            }
        }
    }
    let devices = config["fs"].as_array().map_or([].as_slice(), Vec::as_slice);
    if devices.is_empty() {
        unfit.push(Unfit::NoShare);
    }
    for (at, fs) in devices.iter().enumerate() {
        let device = fs["tag"]
            .as_str()
            .map_or_else(|| format!("fs[{at}]"), str::to_owned);
        if let Some(size) = fs.get("queue_size") {
            unfit.extend(queue_size(&device, size.as_u64().and_then(|n| n.try_into().ok())));
        }
        if let Some(queues) = fs["num_queues"].as_u64() {
            unfit.extend(request_queues(&device, queues, served));
        }
        // Gone since version 22; an older one has them.
        for key in ["dax", "cache_size"] {
            if fs
                .get(key)
                .is_some_and(|value| !matches!(value, Value::Null | Value::Bool(false)))
            {
                unfit.push(Unfit::Dax {
                    place: format!("device {device}"),
                    word: key.into(),
                });
            }
        }
    }
    unfit
}

/// Checks the agent's `Storage` list, or the request that has it as `storages`: the share is mounted, without DAX.
#[must_use]
pub fn agent_storages(storages: &Value) -> Vec<Unfit> {
    let list = storages.as_array().or_else(|| storages["storages"].as_array());
    let options = |storage: &Value| storage["options"].as_array().cloned().unwrap_or_default();
    let is_share = |storage: &&Value| storage["fstype"] == "virtiofs";
    let shares: Vec<&Value> = list.into_iter().flatten().filter(is_share).collect();
    if shares.is_empty() {
        return vec![Unfit::NoStorage];
    }
    let asking = shares.into_iter().flat_map(|storage| {
        let place = format!("storage {}", storage["source"].as_str().unwrap_or_default());
        options(storage).into_iter().filter_map(move |option| {
            let word = option.as_str()?;
            (word.starts_with("dax") && word != "dax=never").then(|| Unfit::Dax {
                place: place.clone(),
                word: word.to_owned(),
            })
        })
    });
    asking.collect()
}

/// QEMU and Cloud Hypervisor refuse a daemon that has fewer.
fn request_queues(device: &str, queues: u64, served: u64) -> Option<Unfit> {
    (!(1..=served).contains(&queues)).then(|| Unfit::Queues {
        device: device.to_owned(),
        queues,
        served,
    })
}

fn queue_size(device: &str, size: Option<u16>) -> Option<Unfit> {
    let device = device.to_owned();
    match size.map(QueueSize::new) {
        Some(Ok(_)) => None,
        Some(Err(error)) => Some(Unfit::QueueSize { device, error }),
        None => Some(Unfit::QueueSizeText { device }),
    }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use super::*;
    use crate::qemu::{memory_arguments, share_arguments};
    use crate::{AgentStorage, ContainerId, OverlayPlan, ShareDevice, ShareSocket, ShareTag};
    use serde_json::json;

    fn share() -> ShareDevice {
        ShareDevice::on(ShareSocket::new("/run/nydusbox/s1/vhost,1.sock").unwrap())
    }

    fn said(unfit: &[Unfit]) -> Vec<String> {
        unfit.iter().map(Unfit::to_string).collect()
    }

    #[test]
    fn what_this_crate_writes_is_fit() {
        let mut arguments = vec!["-machine".into(), "q35,memory-backend=mem".into()];
        arguments.extend(memory_arguments(1 << 30));
        arguments.extend(share_arguments(&share()));
        let arguments: Vec<String> = arguments.into_iter().map(|a| a.into_string().unwrap()).collect();
        assert_eq!(qemu(&arguments, 1), []);
        let config = serde_json::to_value(share().cloud_hypervisor_config(1 << 30).unwrap()).unwrap();
        assert_eq!(cloud_hypervisor(&config, 1), []);
        let rootfs = AgentStorage::rootfs(&OverlayPlan::for_container(&ContainerId::new("c1").unwrap()));
        assert_eq!(
            agent_storages(&json!([AgentStorage::share(&ShareTag::default()), rootfs])),
            []
        );
    }

    /// Kata's command line for nydus, with a file in /dev/shm for memory.
    #[test]
    fn katas_qemu_is_fit_until_something_is_changed() {
        let line = "-machine q35,accel=kvm -m 2048M -object memory-backend-file,id=dimm1,size=2048M,\
                    mem-path=/dev/shm,share=on -numa node,memdev=dimm1 -chardev socket,id=char-1,path=/run/v.sock \
                    -device vhost-user-fs-pci,chardev=char-1,tag=kataShared,queue-size=1024";
        let check = |from: &str, to: &str| {
            let line = line.replace(from, to);
            assert!(from.is_empty() || line.contains(to));
            said(&qemu(&line.split_whitespace().collect::<Vec<_>>(), 1))
        };
        assert!(check("", "").is_empty());
        let private =
            "the guest's memory is not shared: memory-backend-file,id=dimm1,size=2048M,mem-path=/dev/shm";
        assert_eq!(check(",share=on", ""), [private]);
        assert_eq!(check(",share=on", ",share=off"), [format!("{private},share=off")]);
        assert!(check("memory-backend-file", "memory-backend-ram")[0].contains("memory-backend-ram"));
        assert_eq!(
            check("memdev=dimm1", "memdev=x"),
            ["the guest's memory is not shared: there is no memory backend x"]
        );
        assert!(check("-numa", "-other")[0].contains("neither -machine"));
        assert_eq!(
            check("size=1024", "size=2048"),
            ["device kataShared: queue size 2048 is not a power of two between 1 and 1024"]
        );
        assert_eq!(
            check("size=1024", "size=many"),
            ["device kataShared: the queue size is not a number"]
        );
        assert!(check("queue-size=1024", "cache-size=1G")[0].contains("DAX (cache-size)"));
        assert_eq!(
            check("vhost-user-fs-pci", "virtio-9p-pci"),
            ["there is no vhost-user-fs device"]
        );
    }

    #[test]
    fn cloud_hypervisor_is_fit_until_something_is_changed() {
        let good = || serde_json::to_value(share().cloud_hypervisor_config(1 << 30).unwrap()).unwrap();
        let with = |pointer: &str, value: Value| {
            let mut config = good();
            let (parent, key) = pointer.rsplit_once('/').unwrap();
            config.pointer_mut(parent).unwrap()[key] = value;
            said(&cloud_hypervisor(&config, 1))
        };
        assert_eq!(
            with("/memory/shared", json!(false)),
            ["the guest's memory is not shared: memory.shared is not true"]
        );
        assert_eq!(
            with("/memory/zones", json!([{"size": 1, "shared": true}, {"size": 1}])),
            ["the guest's memory is not shared: memory.zones[1].shared is not true"]
        );
        assert_eq!(with("/fs/0/queue_size", json!(4096)).len(), 1);
        assert_eq!(
            with("/fs/0/queue_size", json!(1 << 20)),
            ["device kataShared: the queue size is not a number"]
        );
        assert_eq!(
            with("/fs/0/num_queues", json!(2)),
            ["device kataShared has 2 request queues, and the daemon serves 1"]
        );
        assert_eq!(with("/fs/0/dax", json!(true)).len(), 1);
        assert_eq!(with("/fs", json!(null)), ["there is no vhost-user-fs device"]);
        assert_eq!(said(&cloud_hypervisor(&json!(null), 1)).len(), 2);
    }

    /// What libvirt 10 starts: `-object` and `-device` are JSON.
    #[test]
    fn libvirts_qemu_is_fit_until_something_is_changed() {
        let memory = r#"{"qom-type":"memory-backend-memfd","id":"pc.ram","share":true,"x-use-canonical-path-for-ramblock-id":false,"size":1073741824}"#;
        let device = r#"{"driver":"vhost-user-fs-pci","id":"fs0","chardev":"chr-vu-fs0","queue-size":1024,"tag":"kataShared","bus":"pci.1","addr":"0x0"}"#;
        let check = |from: &str, to: &str| {
            let machine = "pc-q35-8.2,usb=off,memory-backend=pc.ram";
            let arguments = ["-machine", machine, "-object", memory, "-device", device];
            said(&qemu(&arguments.map(|argument| argument.replace(from, to)), 1))
        };
        assert!(check("nothing", "").is_empty());
        assert!(check("\"share\":true", "\"share\":false")[0].contains("memory is not shared: {"));
        assert!(check("memory-backend-memfd", "memory-backend-ram")[0].contains("memory-backend-ram"));
        assert_eq!(
            check("\"queue-size\":1024", "\"queue-size\":2048"),
            ["device kataShared: queue size 2048 is not a power of two between 1 and 1024"]
        );
        assert_eq!(
            check("\"tag\"", "\"num-request-queues\":4,\"tag\""),
            ["device kataShared has 4 request queues, and the daemon serves 1"]
        );
        assert!(check("\"tag\"", "\"cache-size\":4096,\"tag\"")[0].contains("DAX (cache-size)"));
        assert_eq!(
            check("vhost-user-fs-pci", "virtio-9p-pci"),
            ["there is no vhost-user-fs device"]
        );
    }

    #[test]
    fn a_device_may_have_the_request_queues_that_the_daemon_serves() {
        let line = "-machine q35,memory-backend=m -object memory-backend-memfd,id=m \
                    -device vhost-user-fs-pci,tag=s,num-request-queues=";
        let of_qemu = |queues: u64, served| {
            let line = format!("{line}{queues}");
            qemu(&line.split_whitespace().collect::<Vec<_>>(), served).is_empty()
        };
        let of_cloud_hypervisor = |queues: u64, served| {
            let config = json!({"memory": {"shared": true}, "fs": [{"tag": "s", "num_queues": queues}]});
            cloud_hypervisor(&config, served).is_empty()
        };
        for (queues, served, fits) in [
            (1, 1, true),
            (4, 1, false),
            (4, 4, true),
            (1, 4, true),
            (0, 4, false),
        ] {
            assert_eq!(of_qemu(queues, served), fits, "{queues} of {served}");
            assert_eq!(of_cloud_hypervisor(queues, served), fits, "{queues} of {served}");
        }
    }

    #[test]
    fn storages_without_the_share_are_told() {
        let rootfs = json!({"fstype": "overlay", "source": "none", "options": []});
        let share = json!({"fstype": "virtiofs", "source": "kataShared", "options": ["dax"]});
        for without in [
            json!([]),
            json!(null),
            json!({}),
            json!([rootfs]),
            json!({"storages": [rootfs]}),
        ] {
            assert_eq!(agent_storages(&without), [Unfit::NoStorage], "{without}");
        }
        assert_eq!(
            said(&agent_storages(&json!({"storages": [rootfs, share]}))).len(),
            1
        );
        assert!(said(&agent_storages(&json!([share])))[0].contains("dax"));
    }

    /// Kata's Go runtime adds it when the cache size is set, whatever the daemon is.
    #[test]
    fn a_storage_that_asks_for_dax_is_told() {
        let storage =
            |option: &str| json!([{"fstype": "virtiofs", "source": "kataShared", "options": ["ro", option]}]);
        assert_eq!(agent_storages(&storage("dax")).len(), 1);
        assert_eq!(agent_storages(&storage("dax=always")).len(), 1);
        assert_eq!(agent_storages(&storage("dax=never")), []);
        assert_eq!(agent_storages(&storage("nodev")), []);
    }
}
