//! Argument by argument, against the options of a genuine nydusd 2.2.0 and our own.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use super::*;
use proptest::prelude::*;

fn stock() -> Options {
    Options::parse(include_str!("nydusd-2.2.0-virtiofs-help.txt"))
}

fn words(text: &str) -> Vec<OsString> {
    text.split_whitespace().map(OsString::from).collect()
}

fn nydusd(args: &str) -> Result<Fitted, ArgumentError> {
    fit(ProgramKind::Stock, &words(args), &stock())
}

fn ours(args: &str) -> Result<Fitted, ArgumentError> {
    fit(ProgramKind::Embedded, &words(args), &Options::embedded())
}

fn passed(fitted: &Fitted) -> String {
    let args: Vec<&str> = fitted.args.iter().map(|a| a.to_str().unwrap()).collect();
    args.join(" ")
}

#[test]
fn what_the_program_knows_is_passed_whatever_its_form() {
    for (given, expected) in [
        ("--id s1 --supervisor /run/s", "--id s1 --supervisor /run/s"),
        ("--id=s1", "--id s1"),
        ("-L /var/log/n.log", "--log-file /var/log/n.log"),
        ("-L/var/log/n.log", "--log-file /var/log/n.log"),
        ("-L=/var/log/n.log", "--log-file /var/log/n.log"),
        ("--log-rotation-size 10", "--log-rotation-size 10"),
    ] {
        assert_eq!(passed(&nydusd(given).unwrap()), expected, "{given}");
    }
    assert_eq!(
        passed(&ours("--threads-max=8 --request-queues 2").unwrap()),
        "--threads-max 8 --request-queues 2"
    );
}

#[test]
fn katas_defaults_are_left_out_and_said_so() {
    for fit in [nydusd, ours] {
        let fitted = fit("--thread-pool-size=1 --announce-submounts").unwrap();
        assert_eq!(passed(&fitted), "");
        let names: Vec<&str> = fitted.translations.iter().map(|t| t.argument.as_str()).collect();
        assert_eq!(names, ["--thread-pool-size", "--announce-submounts"]);
    }
    // As Kata's documentation has it.
    let fitted = nydusd("--log-level debug --threads 4").unwrap();
    assert_eq!(
        (passed(&fitted).as_str(), fitted.log_level),
        ("", Some(LogLevel::Debug))
    );
}

#[test]
fn hybrid_mode_is_never_passed_because_it_would_turn_it_off() {
    for fit in [nydusd, ours] {
        let fitted = fit("--hybrid-mode").unwrap();
        assert!(fitted.args.is_empty() && fitted.translations.len() == 1);
    }
}

#[test]
fn a_limit_of_open_files_takes_the_place_of_ours() {
    let fitted = nydusd("--rlimit-nofile 4096").unwrap();
    assert!(fitted.sets_nofile);
    assert_eq!(passed(&fitted), "--rlimit-nofile 4096");
}

#[test]
fn what_would_be_refused_or_break_the_sandbox_is_refused_by_name() {
    let kind = |error: ArgumentError| {
        let debug = format!("{error:?}");
        debug.split([' ', '{']).next().unwrap().to_owned()
    };
    for (args, expected) in [
        ("--no-such-thing", "Unknown"),
        ("--backend-source=x", "Unknown"),
        ("-x", "Unknown"),
        ("--sock /tmp/s", "Owned"),
        ("-A /tmp/a", "Owned"),
        ("--shared-dir /srv", "Owned"),
        ("--bootstrap=/b", "Owned"),
        ("-h", "Owned"),
        ("--id a --id b", "Repeated"),
        ("--log-level info --log-level=debug", "Repeated"),
        ("stray", "NotAnOption"),
        ("--", "NotAnOption"),
        ("-", "NotAnOption"),
        ("--id", "NoValue"),
        ("--announce-submounts=yes", "UnexpectedValue"),
        ("--log-level loud", "LogLevel"),
        ("--upgrade", "Unmet"),
        ("--sandbox=namespace", "Unmet"),
        ("--cache always", "Unmet"),
    ] {
        assert_eq!(kind(nydusd(args).unwrap_err()), expected, "{args}");
    }
    assert_eq!(kind(ours("--writeback").unwrap_err()), "Unmet");
    assert_eq!(kind(ours("--upgrade").unwrap_err()), "Unknown");
}

#[test]
fn a_refusal_says_what_to_write_and_shows_no_value() {
    let error = nydusd("--cache=se=cret").unwrap_err().to_string();
    assert_eq!(
        error,
        "pass --cache to the daemon: its caching cannot be chosen; write auto"
    );
    let error = nydusd("--nope=secret").unwrap_err().to_string();
    assert!(
        error.contains("--nope") && error.contains("--rlimit-nofile") && !error.contains("secret"),
        "{error}"
    );
}

proptest! {
    /// Whatever is given, what is passed on is only options the program has, each once.
    #[test]
    fn only_known_options_reach_the_program(args in proptest::collection::vec("(--?)?[a-z-]{0,8}(=[a-z]{0,3})?|--(id|xattr|upgrade|log-level|rlimit-nofile|supervisor)(=[a-z]{1,4})?", 0..6)) {
        let options = stock();
        let given: Vec<OsString> = args.iter().map(OsString::from).collect();
        if let Ok(fitted) = fit(ProgramKind::Stock, &given, &options) {
            let mut seen = std::collections::HashSet::new();
            let mut rest = fitted.args.iter();
            while let Some(name) = rest.next() {
                let name = name.to_str().unwrap().strip_prefix("--").unwrap();
                prop_assert!(seen.insert(name.to_owned()));
                match options.takes_value(name) {
                    Some(true) => prop_assert!(rest.next().is_some()),
                    Some(false) => {}
                    None => prop_assert!(false, "{} is unknown", name),
                }
            }
        }
    }
}
