//! `container.sh`, run by this machine's shell on directories that stand for a container's root.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::ffi::OsStr;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;
use std::process::Command;

use proptest::prelude::*;
use rustix::fs::{CWD, Mode, OFlags, ResolveFlags, openat2};
use rustix::io::Errno;

use super::*;

/// Runs a script that has what `container.sh` defines, with `root` as the container's root.
fn shell(root: &Path, script: &str, arguments: &[&str]) -> (bool, String) {
    let whole = format!("{}\n{script}", std::str::from_utf8(CONTAINER).unwrap());
    let output = Command::new("sh")
        .args(["-c", &whole, "sh"])
        .args(arguments)
        .env("NB_ROOT", root)
        .output()
        .unwrap();
    assert_eq!(String::from_utf8_lossy(&output.stderr), "");
    let text = String::from_utf8(output.stdout).unwrap();
    (output.status.success(), text.trim_end_matches('\n').to_owned())
}

const PASSWD: &str = "\
root:x:0:0:root:/root:/bin/sh
broken:x:abc:0::/broken:
daemon:*:1:1
app:x:1000:1001:An app:/srv/my app:/bin/sh
12:x:1200:1201::/twelve:
last:x:1002:1002::/last:";

const GROUP: &str = "\
root:x:0:app
adm:x:4:syslog,app,other
apple:x:5:apple,my-app
staff:x:50:
broken:x:y:app
77:x:78:
video:x:44:root,app";

#[test]
fn users_and_groups_are_those_of_the_containers_files() {
    let root = tempfile::tempdir().unwrap();
    fs::create_dir(root.path().join("etc")).unwrap();
    fs::write(root.path().join("etc/passwd"), PASSWD).unwrap();
    fs::write(root.path().join("etc/group"), GROUP).unwrap();
    for (user, group, expected) in [
        ("0", "", "0:0:/root: 44"),
        ("root", "", "0:0:/root: 44"),
        ("app", "", "1000:1001:/srv/my app: 0 4 44"),
        ("1000", "", "1000:1001:/srv/my app: 0 4 44"),
        ("daemon", "", "1:1:/:"),
        // A name that looks like a number is found first.
        ("12", "", "1200:1201:/twelve:"),
        ("1200", "", "1200:1201:/twelve:"),
        // A number that is unknown, and the last line, which has no end.
        ("4321", "", "4321:0:/:"),
        ("last", "", "1002:1002:/last:"),
        // With a group there are no others.
        ("app", "staff", "1000:50:/srv/my app:"),
        ("app", "50", "1000:50:/srv/my app:"),
        ("app", "77", "1000:78:/srv/my app:"),
        ("app", "4242", "1000:4242:/srv/my app:"),
        ("4321", "video", "4321:44:/:"),
        ("nobody", "", "the container's /etc/passwd has no user nobody"),
        ("broken", "", "the container's /etc/passwd has no user broken"),
        ("a*", "", "the container's /etc/passwd has no user a*"),
        ("app", "wheel", "the container's /etc/group has no group wheel"),
    ] {
        let script = r#"
            if find_user "$1" "$2"; then echo "$uid:$gid:$home:$groups"; else echo "$missing"; fi
        "#;
        let (_, told) = shell(root.path(), script, &[user, group]);
        assert_eq!(told, expected, "{user}:{group}");
    }
}

#[test]
fn without_files_only_numbers_are_users() {
    let root = tempfile::tempdir().unwrap();
    let script = r#"find_user "$1" "" && echo "$uid:$gid:$home:$groups""#;
    assert_eq!(shell(root.path(), script, &["0"]), (true, "0:0:/:".to_owned()));
    assert_eq!(shell(root.path(), script, &["root"]), (false, String::new()));
}

#[test]
fn the_containers_files_are_not_looked_for_outside() {
    let root = tempfile::tempdir().unwrap();
    fs::create_dir_all(root.path().join("usr/etc")).unwrap();
    symlink("/usr/etc", root.path().join("etc")).unwrap();
    symlink("../../../../etc/passwd.real", root.path().join("usr/etc/passwd")).unwrap();
    fs::write(root.path().join("usr/etc/passwd.real"), "app:x:7:8::/home:\n").unwrap();
    let (_, told) = shell(root.path(), r#"find_user app "" && echo "$uid:$gid""#, &[]);
    assert_eq!(told, "7:8");
}

#[test]
fn localhost_and_the_machines_name_are_added_where_the_containers_file_leaves_them_out() {
    let root = tempfile::tempdir().unwrap();
    let file = root.path().join("hosts");
    let file = file.to_str().unwrap();
    let hosts = |name| shell(root.path(), r#"hosts "$1" "$2""#, &[file, name]).1;
    let ours = "127.0.0.1 localhost\n::1 localhost ip6-localhost ip6-loopback";
    assert_eq!(hosts("db1"), format!("{ours}\n127.0.0.1 db1"));
    assert_eq!(hosts("db1.example"), format!("{ours}\n127.0.0.1 db1.example db1"));
    assert_eq!(hosts("localhost"), ours);
    // Somebody's own, which stay; the last line has no end.
    let own = "127.0.0.1\tlocalhost\t* # db1\n# ::1 localhost\n10.0.0.7 other db1.example";
    fs::write(file, own).unwrap();
    let [_, ipv6] = ours.split('\n').collect::<Vec<_>>()[..] else {
        unreachable!()
    };
    assert_eq!(hosts("db1"), format!("{own}\n{ipv6}\n127.0.0.1 db1"));
    assert_eq!(hosts("db1.example"), format!("{own}\n{ipv6}"));
    let whole = format!("::1 localhost\n{own}");
    fs::write(file, &whole).unwrap();
    assert_eq!(hosts("other"), whole);
}

#[test]
fn a_program_is_the_containers_own_by_its_search_path() {
    let root = tempfile::tempdir().unwrap();
    let file = |path: &str, mode| {
        let path = root.path().join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, "").unwrap();
        fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
    };
    file("usr/bin/cat", 0o755);
    file("usr/bin/tool", 0o644);
    file("opt/tool", 0o755);
    file("work/here/own", 0o711);
    fs::create_dir_all(root.path().join("opt/cat")).unwrap();
    symlink("usr/bin", root.path().join("bin")).unwrap();
    symlink("/opt/tool", root.path().join("usr/bin/absolute")).unwrap();
    for (name, path, expected) in [
        ("cat", "/opt:/bin:/usr/bin", "/bin/cat"),
        ("tool", "/usr/bin:/opt", "/opt/tool"),
        ("absolute", "/usr/bin", "/usr/bin/absolute"),
        ("own", "/usr/bin:here", "here/own"),
        ("own", "", "own"),
        ("./cat", "/usr/bin", "./cat"),
        ("nothing-of-this-name", "/usr/bin", "nothing-of-this-name"),
        // Busybox would have one.
        ("ls", "/opt:/usr/bin", "/opt/ls"),
    ] {
        let script = r#"find_program "$1" "$2" /work; echo "$program""#;
        let (_, told) = shell(root.path(), script, &[name, path]);
        assert_eq!(told, expected, "{name} in {path}");
    }
}

/// A tree of few names, so that links meet.
fn entries() -> impl Strategy<Value = Vec<(String, Option<String>)>> {
    let path = "/?(a|b|c|\\.\\.|\\.)(/(a|b|c|\\.\\.|\\.)){0,3}";
    let entry = (
        proptest::string::string_regex("(a|b|c)(/(a|b|c)){0,2}").unwrap(),
        proptest::option::of(proptest::string::string_regex(path).unwrap()),
    );
    proptest::collection::vec(entry, 0..8)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]
    /// The kernel follows links from a root when it is told to (openat2(2), RESOLVE_IN_ROOT).
    #[test]
    fn links_lead_where_the_kernel_says_they_do(
        entries in entries(),
        path in "(/(a|b|c|\\.\\.|\\.)){1,5}",
    ) {
        let outside = tempfile::tempdir().unwrap();
        let root = outside.path().join("root");
        fs::create_dir(&root).unwrap();
        for (name, target) in &entries {
            let at = root.join(name);
            // What is in the way stays; links are not gone through.
            let made = at.parent().map(|dir| dir.symlink_metadata().is_ok_and(|meta| meta.is_dir()));
            if made == Some(true) {
                let _ = match target {
                    Some(target) => symlink(target, &at),
                    None => fs::create_dir(&at),
                };
            }
        }
        let (followed, told) = shell(&root, r#"inside "$1" && echo "$at""#, &[&path]);
        let found = openat2(CWD, &root, OFlags::PATH, Mode::empty(), ResolveFlags::empty())
            .and_then(|root| openat2(root, &path, OFlags::PATH, Mode::empty(), ResolveFlags::IN_ROOT));
        match found {
            Ok(found) => prop_assert_eq!(told, path_of(&found)),
            // What isn't there is still inside. A link that leads through it to itself is refused.
            Err(Errno::NOENT) => prop_assert!(
                !followed
                    || Path::new(&told).starts_with(&root) && !told.split('/').any(|part| part == ".."),
                "{}", told
            ),
            Err(Errno::LOOP) => prop_assert!(!followed),
            Err(errno) => prop_assert!(false, "{}", errno),
        }
    }
}

fn path_of(file: &OwnedFd) -> String {
    let path = rustix::fs::readlink(format!("/proc/self/fd/{}", file.as_raw_fd()), Vec::new()).unwrap();
    OsStr::from_bytes(path.as_bytes()).to_str().unwrap().to_owned()
}
