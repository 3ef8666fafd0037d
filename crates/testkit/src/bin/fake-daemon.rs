//! A daemon that misbehaves on request.
//!
//! Takes the command line of `nydusd virtiofs` and, beyond it, `--sock-fd` and `--apisock-fd`. What it does is in
//! the environment variable `FAKE_DAEMON`, a name with `:`-separated arguments; see [`Behaviour`]. Blocking
//! threads only: it must not share a bug with the asynchronous code it tests. HTTP is in [`http`].

use std::fs::File;
use std::io::{self, Write};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixListener;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Command, ExitCode};

use rustix::process::{PidfdFlags, PidfdGetfdFlags, getpid, pidfd_getfd, pidfd_open};

#[path = "fake_daemon/http.rs"]
mod http;

use http::Conduct;

/// What to do, parsed from `FAKE_DAEMON`.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Behaviour {
    /// `serve`: as it should be.
    Serve,
    /// `exit:CODE:LINES`: prints that many lines on standard error, then exits.
    Exit { code: u8, lines: usize },
    /// `exit-with-child`: exits with status 7, leaving a child in its group that holds the output open.
    ExitWithChild,
    /// `never-binds`: runs and does nothing.
    NeverBinds,
    /// `binds-late:FIFO`: serves after something has opened that FIFO for writing.
    BindsLate { fifo: PathBuf },
    /// `ignore-sigterm`: serves, and cannot be asked to end.
    IgnoreSigterm,
    /// `long-line`: prints 10 MiB without a line feed, then serves.
    LongLine,
    /// `flood`: prints without pause while it serves.
    Flood,
    /// `help-hangs`: says nothing when asked for its options; serves otherwise.
    HelpHangs,
    /// `not-utf8`: prints bytes that are no text, then exits with status 3.
    NotUtf8,
    /// `script:FILE`: what the first line of the file says, and takes it away if it is not the last. So each daemon
    /// of a sandbox is another one.
    Script { file: PathBuf },
    /// Serves, with a flaw in its answers.
    Flawed(Conduct),
}

impl Behaviour {
    fn parse(text: &str) -> Option<Self> {
        let mut words = text.split(':');
        let mut next = || words.next();
        Some(match next()? {
            "" | "serve" => Self::Serve,
            "exit" => Self::Exit {
                code: next()?.parse().ok()?,
                lines: next()?.parse().ok()?,
            },
            "exit-with-child" => Self::ExitWithChild,
            "never-binds" => Self::NeverBinds,
            "binds-late" => Self::BindsLate { fifo: next()?.into() },
            "ignore-sigterm" => Self::IgnoreSigterm,
            "long-line" => Self::LongLine,
            "flood" => Self::Flood,
            "help-hangs" => Self::HelpHangs,
            "not-utf8" => Self::NotUtf8,
            "script" => Self::Script { file: next()?.into() },
            name => Self::Flawed(Conduct::parse(name)?),
        })
    }
}

/// In clap's layout, which the supervisor reads.
const HELP: &str = "Options:
  -A, --apisock <apisock>
      --sock <sock>
      --sock-fd <fd>
      --apisock-fd <fd>
      --log-level <log-level>
      --id <id>
      --rlimit-nofile <number>
      --log-file <file>
";

#[derive(Debug, Default)]
struct Arguments {
    sock: Option<PathBuf>,
    apisock: Option<PathBuf>,
    sock_fd: Option<i32>,
    apisock_fd: Option<i32>,
}

fn arguments() -> Result<Arguments, String> {
    let mut args = std::env::args().skip(1);
    if args.next().as_deref() != Some("virtiofs") {
        return Err("the first argument must be virtiofs".to_owned());
    }
    let mut parsed = Arguments::default();
    while let Some(name) = args.next() {
        if name == "--exit-with-stdin" {
            end_with_stdin();
            continue;
        }
        let value = args.next().ok_or_else(|| format!("{name} needs a value"))?;
        let number = || value.parse().map_err(|_| format!("{name} needs a number"));
        match name.as_str() {
            "--sock" => parsed.sock = Some(value.into()),
            "--apisock" => parsed.apisock = Some(value.into()),
            "--sock-fd" => parsed.sock_fd = Some(number()?),
            "--apisock-fd" => parsed.apisock_fd = Some(number()?),
            "--log-level" | "--rlimit-nofile" | "--log-file" | "--id" => {}
            _ => return Err(format!("unexpected argument {name}")),
        }
    }
    Ok(parsed)
}

fn end_with_stdin() {
    std::thread::spawn(|| {
        let _ = io::copy(&mut io::stdin(), &mut io::sink());
        let _ = rustix::process::kill_process(getpid(), rustix::process::Signal::KILL);
    });
}

/// A listening socket this process was started with. Taken through a pidfd of our own: adopting a number would
/// need `unsafe`.
fn inherited(number: i32) -> io::Result<UnixListener> {
    let own = pidfd_open(getpid(), PidfdFlags::empty())?;
    let fd: OwnedFd = pidfd_getfd(own, number, PidfdGetfdFlags::empty())?;
    Ok(fd.into())
}

fn listen(fd: Option<i32>, path: Option<&PathBuf>) -> io::Result<UnixListener> {
    match (fd, path) {
        (Some(number), _) => inherited(number),
        (None, Some(path)) => UnixListener::bind(path),
        (None, None) => Err(io::ErrorKind::InvalidInput.into()),
    }
}

fn serve(arguments: &Arguments, conduct: Conduct) -> io::Result<ExitCode> {
    let vhost = listen(arguments.sock_fd, arguments.sock.as_ref())?;
    let api = listen(arguments.apisock_fd, arguments.apisock.as_ref())?;
    let code = http::serve(&api, conduct)?;
    drop(vhost);
    Ok(code)
}

fn sleep_for_ever() -> ! {
    loop {
        std::thread::park();
    }
}

fn run(behaviour: Behaviour, arguments: &Arguments) -> io::Result<ExitCode> {
    match behaviour {
        Behaviour::Serve | Behaviour::HelpHangs => serve(arguments, Conduct::Good),
        Behaviour::Flawed(conduct) => serve(arguments, conduct),
        Behaviour::Exit { code, lines } => {
            let mut err = io::stderr().lock();
            for n in 0..lines {
                writeln!(err, "line {n}")?;
            }
            Ok(code.into())
        }
        Behaviour::ExitWithChild => {
            eprintln!("leaving a child");
            let _child = Command::new("/bin/sleep").arg("1000").spawn()?;
            Ok(7.into())
        }
        Behaviour::NeverBinds => sleep_for_ever(),
        Behaviour::BindsLate { fifo } => {
            // Blocks until the other end is opened.
            File::open(fifo)?;
            serve(arguments, Conduct::Good)
        }
        Behaviour::IgnoreSigterm => {
            // An ignored signal stays ignored across exec, and a shell can ignore one without unsafe code.
            Err(Command::new("/bin/sh")
                .args(["-c", "trap '' TERM; exec \"$0\" \"$@\""])
                .arg(std::env::current_exe()?)
                .args(std::env::args_os().skip(1))
                .env("FAKE_DAEMON", "serve")
                .exec())
        }
        Behaviour::LongLine => {
            io::stderr().write_all(&vec![b'x'; 10 << 20])?;
            serve(arguments, Conduct::Good)
        }
        Behaviour::Flood => {
            std::thread::spawn(|| {
                let chunk = "flood flood flood flood\n".repeat(1000);
                while io::stdout().write_all(chunk.as_bytes()).is_ok() {}
            });
            serve(arguments, Conduct::Good)
        }
        Behaviour::Script { file } => {
            let lines = std::fs::read_to_string(&file)?;
            let (first, rest) = lines.split_once('\n').unwrap_or((&lines, ""));
            if !rest.is_empty() {
                std::fs::write(&file, rest)?;
            }
            match Behaviour::parse(first) {
                Some(behaviour) => run(behaviour, arguments),
                None => Err(io::Error::other(format!("no behaviour {first:?}"))),
            }
        }
        Behaviour::NotUtf8 => {
            io::stderr().write_all(b"good\nbad \xff\xfe\x1b[31mred\x1b[0m\nunfinished")?;
            Ok(3.into())
        }
    }
}

fn main() -> ExitCode {
    let text = std::env::var("FAKE_DAEMON").unwrap_or_default();
    let Some(behaviour) = Behaviour::parse(&text) else {
        eprintln!("fake-daemon: no behaviour {text:?}");
        return ExitCode::from(100);
    };
    if std::env::args().nth(2).as_deref() == Some("--help") {
        if behaviour == Behaviour::HelpHangs {
            sleep_for_ever();
        }
        print!("{HELP}");
        return ExitCode::SUCCESS;
    }
    let result = arguments()
        .map_err(io::Error::other)
        .and_then(|arguments| run(behaviour, &arguments));
    result.unwrap_or_else(|error| {
        eprintln!("fake-daemon: {error}");
        ExitCode::from(2)
    })
}
