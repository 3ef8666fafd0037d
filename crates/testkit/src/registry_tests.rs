//! What a genuine client makes of it. skopeo's certificates are taken from `--src-cert-dir`.

use std::process::Output;

use super::*;

fn skopeo(args: &[&str]) -> Option<Output> {
    let program = peers::require_program("skopeo").ok()?;
    Some(Command::new(program).args(args).output().unwrap())
}

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

#[test]
fn the_certificate_is_accepted_with_its_authority_only() {
    let Ok(registry) = Registry::start(RegistryOptions {
        tls: true,
        ..RegistryOptions::default()
    }) else {
        return;
    };
    let of = format!("docker://{}/nothing", registry.host());
    let dir = registry.ca_file().unwrap().parent().unwrap().join("certs");
    fs::create_dir(&dir).unwrap();
    let certs = format!("--cert-dir={}", dir.display());
    let Some(unknown) = skopeo(&["list-tags", &certs, &of]) else {
        return;
    };
    assert!(said(&unknown).contains("unknown authority"), "{}", said(&unknown));
    fs::copy(registry.ca_file().unwrap(), dir.join("ca.crt")).unwrap();
    let known = skopeo(&["list-tags", &certs, &of]).unwrap();
    assert!(said(&known).contains("404 (Not Found)"), "{}", said(&known));
}

#[test]
fn the_password_is_asked_for() {
    let Ok(registry) = Registry::start(RegistryOptions {
        password: true,
        ..RegistryOptions::default()
    }) else {
        return;
    };
    let of = format!("docker://{}/nothing", registry.host());
    let ask = |credentials: &str| {
        let credentials = format!("--creds={credentials}");
        skopeo(&["list-tags", "--tls-verify=false", &credentials, &of]).map(|output| said(&output))
    };
    let Some(right) = ask(&format!("{USER}:{PASSWORD}")) else {
        return;
    };
    assert!(right.contains("404 (Not Found)"), "{right}");
    let wrong = ask(&format!("{USER}:wrong")).unwrap();
    assert!(
        wrong.contains("authentication required") || wrong.contains("unauthorized"),
        "{wrong}"
    );
}
