//! The files of templates; what is in them is nobody's business here.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt, chown};

use rustix::process::geteuid;

use super::*;

const MEMORY_BYTES: u64 = 4 << 20;

/// A machine like no other, of a file that stands for QEMU and the kernel.
fn description(dir: &Path, argument: &str) -> Description {
    let file = dir.join("file");
    if !file.exists() {
        fs::write(&file, "").unwrap();
    }
    Description::new(&file, &[argument.to_owned()], &file, b"", MEMORY_BYTES).unwrap()
}

fn saved(dir: &TemplateDir, description: &Description) {
    let slot = dir.save(description).unwrap().unwrap();
    let memory = slot.memory(MEMORY_BYTES).unwrap();
    memory.write_all_at(b"memory", 4096).unwrap();
    slot.finish(b"state").unwrap();
}

fn entries(dir: &TemplateDir) -> Vec<String> {
    let mut names: Vec<String> = fs::read_dir(&dir.0)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .filter(|name| name != "lock")
        .collect();
    names.sort();
    names
}

fn used_before(dir: &TemplateDir, description: &Description, age: Duration) {
    let about = File::options()
        .write(true)
        .open(dir.0.join(description.key()).join(ABOUT))
        .unwrap();
    let then = FileTimes::new().set_modified(SystemTime::now() - age);
    about.set_times(then).unwrap();
}

#[test]
fn what_is_saved_is_found_and_is_the_owners_only() {
    let root = tempfile::tempdir().unwrap();
    let dir = TemplateDir::new(&root.path().join("a/templates"));
    let first = description(root.path(), "first");
    assert!(dir.find(&first).is_none());
    saved(&dir, &first);
    let template = dir.find(&first).unwrap();
    assert_eq!(
        (template.first_byte(), template.after_first_byte()),
        (b's', &b"tate"[..])
    );
    let mut bytes = [0; 6];
    template.memory.read_exact_at(&mut bytes, 4096).unwrap();
    assert_eq!(&bytes, b"memory");
    assert!(dir.find(&description(root.path(), "second")).is_none());

    let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode(&dir.0), 0o700);
    assert_eq!(mode(&dir.0.join(first.key())), 0o700);
    assert_eq!(mode(&dir.0.join(first.key()).join(MEMORY)), 0o600);

    template.discard();
    assert!(dir.find(&first).is_none());
    assert!(entries(&dir).is_empty());
}

#[test]
fn one_saves_at_a_time_and_leaves_nothing_if_it_fails() {
    let root = tempfile::tempdir().unwrap();
    let dir = TemplateDir::new(root.path());
    let (first, second) = (
        description(root.path(), "first"),
        description(root.path(), "second"),
    );
    let slot = dir.save(&first).unwrap().unwrap();
    assert!(dir.save(&second).unwrap().is_none());
    slot.memory(MEMORY_BYTES).unwrap();
    drop(slot);
    assert!(dir.find(&first).is_none());
    saved(&dir, &second);
    assert_eq!(entries(&dir), [second.key(), "file".to_owned()]);
}

/// Both have looked for it, and only one was the first to save it.
#[test]
fn what_was_saved_while_somebody_waited_is_not_saved_again() {
    let root = tempfile::tempdir().unwrap();
    let dir = TemplateDir::new(&root.path().join("templates"));
    let first = description(root.path(), "first");
    assert!(dir.find(&first).is_none());
    saved(&dir, &first);
    let before = fs::metadata(dir.0.join(first.key())).unwrap().ino();
    assert!(dir.save(&first).unwrap().is_none());
    assert_eq!(fs::metadata(dir.0.join(first.key())).unwrap().ino(), before);
    assert_eq!(entries(&dir), [first.key()]);
}

/// One that is replaced while it is in use is the old one to its end, and takes nothing of the new one along.
#[test]
fn a_template_is_removed_by_who_found_it_and_not_the_one_in_its_place() {
    let root = tempfile::tempdir().unwrap();
    let dir = TemplateDir::new(&root.path().join("templates"));
    let first = description(root.path(), "first");
    saved(&dir, &first);
    let old = dir.find(&first).unwrap();
    fs::rename(dir.0.join(first.key()), root.path().join("old")).unwrap();
    saved(&dir, &first);
    old.discard();
    assert!(dir.find(&first).is_some());
}

/// What fails for a reason of this process' says nothing about the template.
#[test]
fn what_cannot_be_read_now_stays() {
    let root = tempfile::tempdir().unwrap();
    let dir = TemplateDir::new(&root.path().join("templates"));
    let first = description(root.path(), "first");
    saved(&dir, &first);
    // As an open fails that finds no descriptor left, and as no template has it.
    let state = dir.0.join(first.key()).join(STATE);
    fs::rename(&state, root.path().join(STATE)).unwrap();
    std::os::unix::fs::symlink(root.path().join(STATE), &state).unwrap();
    assert!(dir.find(&first).is_none());
    fs::rename(root.path().join(STATE), &state).unwrap();
    assert!(dir.find(&first).is_some());
}

/// A machine would go on as whatever somebody else has made up.
#[test]
fn what_somebody_else_may_have_put_there_is_not_used() {
    let root = tempfile::tempdir().unwrap();
    let dir = TemplateDir::new(&root.path().join("templates"));
    let first = description(root.path(), "first");
    saved(&dir, &first);
    let key = dir.0.join(first.key());
    for place in [&dir.0, &key] {
        for mode in [0o770, 0o702, 0o1777] {
            fs::set_permissions(place, fs::Permissions::from_mode(mode)).unwrap();
            assert!(dir.find(&first).is_none(), "{place:?} {mode:o}");
            assert!(key.join(STATE).exists());
        }
        fs::set_permissions(place, fs::Permissions::from_mode(0o700)).unwrap();
        assert!(dir.find(&first).is_some());
        if geteuid().is_root() {
            chown(place, Some(12345), None).unwrap();
            assert!(dir.find(&first).is_none(), "{place:?}");
            chown(place, Some(0), None).unwrap();
        }
    }
    fs::set_permissions(&dir.0, fs::Permissions::from_mode(0o777)).unwrap();
    assert!(dir.save(&description(root.path(), "second")).is_err());
    assert_eq!(entries(&dir), [first.key()]);
}

#[test]
fn what_is_left_and_what_is_old_goes_when_the_next_is_saved() {
    let root = tempfile::tempdir().unwrap();
    let dir = TemplateDir::new(&root.path().join("templates"));
    let of = |argument: &str| description(root.path(), argument);
    // Killed while it was saved: nobody has dropped the slot.
    let slot = dir.save(&of("killed")).unwrap().unwrap();
    fs::rename(&slot.staging, root.path().join("kept")).unwrap();
    let staging = slot.staging.clone();
    drop(slot);
    fs::rename(root.path().join("kept"), staging).unwrap();
    saved(&dir, &of("old"));
    used_before(&dir, &of("old"), KEPT_FOR + Duration::from_secs(60));
    saved(&dir, &of("earlier start"));
    let about = dir.0.join(of("earlier start").key()).join(ABOUT);
    let text = fs::read_to_string(&about).unwrap();
    fs::write(&about, text.replacen("host-start ", "host-start 0", 1)).unwrap();
    for (age, argument) in [(3, "a"), (9, "b"), (1, "c"), (4, "d")] {
        saved(&dir, &of(argument));
        used_before(&dir, &of(argument), Duration::from_secs(60 * age));
    }
    saved(&dir, &of("e"));
    let mut expected: Vec<String> = ["a", "c", "d", "e"].map(|argument| of(argument).key()).into();
    expected.sort();
    assert_eq!(entries(&dir), expected);

    // Used again, it is not the one that goes.
    used_before(&dir, &of("e"), Duration::from_secs(60));
    dir.find(&of("d")).unwrap();
    saved(&dir, &of("f"));
    assert!(dir.find(&of("d")).is_some() && dir.find(&of("a")).is_none());
}

/// `--data-dir` may name any directory, and many have one called `templates`.
#[test]
fn what_is_not_ours_stays_as_it_is() {
    let root = tempfile::tempdir().unwrap();
    let dir = TemplateDir::new(&root.path().join("templates"));
    let (key, hex) = ("0123456789abcdef01234567", "aaaaaaaaaaaaaaaaaaaaaaaa");
    let about = "host-start 1\n";
    let files = [
        ("mail/welcome.html", "hello"),
        ("about/about", about),
        (".git.partial/about", about),
        // Named like ours, and something else is in it.
        (&format!("{key}/index.html"), "page"),
        (&format!("{hex}/about"), about),
        (&format!("{hex}/index.html"), "page"),
        ("bbbbbbbbbbbbbbbbbbbbbbbb/about", "about us"),
        ("BBBBBBBBBBBBBBBBBBBBBBBB/about", about),
        (".cccccccccccccccccccccccc.partial/index.html", "page"),
        ("dddddddddddddddddddddddd/about/page", "page"),
        ("page", "page"),
    ];
    for (name, text) in files {
        let path = dir.0.join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }
    let linked = root.path().join("linked");
    fs::create_dir(&linked).unwrap();
    fs::write(linked.join(ABOUT), about).unwrap();
    std::os::unix::fs::symlink(&linked, dir.0.join("eeeeeeeeeeeeeeeeeeeeeeee")).unwrap();
    // Whereas these are ours: of another start, and killed when it was begun.
    for (name, file) in [("f".repeat(24), Some(about)), (partial(&"f".repeat(24)), None)] {
        fs::create_dir(dir.0.join(&name)).unwrap();
        if let Some(text) = file {
            fs::write(dir.0.join(&name).join(ABOUT), text).unwrap();
        }
    }

    let first = description(root.path(), "first");
    saved(&dir, &first);
    assert!(dir.find(&first).is_some());
    for (name, text) in files {
        assert_eq!(fs::read_to_string(dir.0.join(name)).unwrap(), text, "{name}");
    }
    assert!(linked.join(ABOUT).exists() && dir.0.join("eeeeeeeeeeeeeeeeeeeeeeee").exists());
    assert!(!entries(&dir).iter().any(|name| name.contains(&"f".repeat(24))));
}

#[test]
fn what_cannot_be_one_is_removed() {
    let root = tempfile::tempdir().unwrap();
    let dir = TemplateDir::new(&root.path().join("templates"));
    let first = description(root.path(), "first");
    let broken = |breaks: &dyn Fn(&Path)| {
        saved(&dir, &first);
        breaks(&dir.0.join(first.key()));
        assert!(dir.find(&first).is_none());
        assert!(entries(&dir).is_empty());
    };
    broken(&|at| fs::remove_file(at.join(STATE)).unwrap());
    broken(&|at| fs::remove_file(at.join(MEMORY)).unwrap());
    broken(&|at| fs::write(at.join(STATE), "").unwrap());
    broken(&|at| fs::write(at.join(ABOUT), "another").unwrap());
    broken(&|at| {
        let memory = File::options().write(true).open(at.join(MEMORY)).unwrap();
        memory.set_len(MEMORY_BYTES - 1).unwrap();
    });
    // Without its description it is nothing at all, and whoever saves the next one clears it away.
    saved(&dir, &first);
    fs::remove_file(dir.0.join(first.key()).join(ABOUT)).unwrap();
    assert!(dir.find(&first).is_none());
    saved(&dir, &first);
    assert!(dir.find(&first).is_some());
}
