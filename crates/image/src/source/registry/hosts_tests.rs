#![expect(clippy::unwrap_used, reason = "a panic is how a test fails")]

use super::*;

const NOTHING_GIVEN: Given<'static> = Given {
    ca_files: &[],
    skip_verify: false,
    plain_http: false,
};

fn bases(servers: &[Server]) -> Vec<&str> {
    servers.iter().map(|server| server.base.as_str()).collect()
}

#[test]
fn without_configuration_a_host_stands_for_itself_and_only_this_machine_is_plain() {
    for (host, plain_http, base) in [
        ("docker.io", false, "https://registry-1.docker.io/v2/"),
        ("example.com:5000", false, "https://example.com:5000/v2/"),
        ("example.com", true, "http://example.com/v2/"),
        ("127.0.0.1:5000", false, "http://127.0.0.1:5000/v2/"),
        ("[::1]:5000", false, "http://[::1]:5000/v2/"),
    ] {
        let given = Given {
            plain_http,
            ..NOTHING_GIVEN
        };
        assert_eq!(bases(&servers(&[], host, given).unwrap()), [base]);
    }
    let ca_files = ["/ca.pem".into()];
    let given = Given {
        ca_files: &ca_files,
        ..NOTHING_GIVEN
    };
    assert_eq!(
        bases(&servers(&[], "localhost", given).unwrap()),
        ["https://localhost/v2/"]
    );
}

#[test]
fn mirrors_are_asked_in_the_order_of_the_file_and_the_registry_last() {
    let dir = tempfile::tempdir().unwrap();
    let own = dir.path().join("example.com_5000_");
    fs::create_dir(&own).unwrap();
    let text = r#"
        server = "https://origin.example.com"

        [host."https://z.example.com"]
          capabilities = ["pull", "resolve"]
          ca = ["certs/one.pem", "/two.pem"]
          [host."https://z.example.com".header]
            x-tenant = ["a", "b"]

        [host."http://a.example.com/proxy/v2"]
          capabilities = ["pull"]
          override_path = true
          skip_verify = true

        [host."m.example.com/registry"]
    "#;
    fs::write(own.join(HOSTS_FILE), text).unwrap();

    let servers = servers(&[dir.path().to_owned()], "example.com:5000", NOTHING_GIVEN).unwrap();
    assert_eq!(
        bases(&servers),
        [
            "https://z.example.com/v2/",
            "http://a.example.com/proxy/v2/",
            "https://m.example.com/registry/v2/",
            "https://origin.example.com/v2/",
        ]
    );
    assert_eq!(
        servers[0].ca_files,
        [own.join("certs/one.pem"), "/two.pem".into()]
    );
    assert_eq!(servers[0].headers.len(), 2);
    assert!(!servers[0].capabilities.push && servers[0].capabilities.resolve);
    assert!(!servers[1].capabilities.resolve && servers[1].skip_verify);
    assert_eq!(servers[2].capabilities, Capabilities::MIRROR);
    assert_eq!(servers[3].capabilities, Capabilities::ALL);
    assert_eq!(
        servers
            .iter()
            .map(|server| server.mirror_of.is_some())
            .collect::<Vec<_>>(),
        [true, true, true, false]
    );
}

#[test]
fn certificates_beside_no_hosts_file_are_cas() {
    let dir = tempfile::tempdir().unwrap();
    let own = dir.path().join("localhost:5000");
    fs::create_dir(&own).unwrap();
    for name in ["ca.crt", "client.cert", "client.key"] {
        fs::write(own.join(name), "").unwrap();
    }
    let servers = servers(&[dir.path().to_owned()], "localhost:5000", NOTHING_GIVEN).unwrap();
    assert_eq!(servers[0].ca_files, [own.join("ca.crt")]);
    assert_eq!(servers[0].base.as_str(), "https://localhost:5000/v2/");
}

#[test]
fn what_is_not_understood_is_refused_by_name_and_headers_are_not_repeated() {
    let dir = tempfile::tempdir().unwrap();
    let own = dir.path().join("_default");
    fs::create_dir(&own).unwrap();
    for (text, problem) in [
        (
            "[host.\"https://a\"]\ncapabilities = [\"fly\"]",
            "has an unknown capability \"fly\"",
        ),
        (
            "[host.\"https://a\"]\nclient = \"c.pem\"",
            "has a client certificate, which is not supported",
        ),
        (
            "server = \"ftp://a\"",
            "has a URL that is not a plain one of http or https",
        ),
        (
            "server = \"https://u:hunter2@a\"",
            "has a URL that is not a plain one of http or https",
        ),
        (
            "[host.\"https://a\".header]\nx = {hunter2 = 1}",
            "has a header \"x\" that is neither a text nor a list of texts",
        ),
        ("host = 1", "is malformed"),
    ] {
        fs::write(own.join(HOSTS_FILE), text).unwrap();
        let error = servers(&[dir.path().to_owned()], "h.io", NOTHING_GIVEN).unwrap_err();
        assert!(error.to_string().ends_with(problem), "{error}");
    }
}
