//! `nydusbox events`: what has happened to a sandbox, and what happens.

use std::fmt::Write as _;

use clap::Args;
use nydusbox::Exit;
use nydusbox_protocol::SandboxId;
use serde_json::Value;

use super::block_on;
use super::output::{self, OutputArgs, Reader};
use crate::args::StateDirArg;
use crate::control::Client;
use crate::control::wire;
use crate::error::Failure;
use crate::state_dir::StateDir;

/// One event a line (of an exit with the daemon's last ones below), oldest first, from the start on (of a long life the newest 256). With --json one object a
/// line; {"lost": N} says that so many are missing at that place.
#[derive(Debug, Args)]
pub(crate) struct EventsArgs {
    /// Sandbox whose events to show
    id: SandboxId,
    /// Go on until the sandbox ends
    #[arg(short, long)]
    follow: bool,
    #[command(flatten)]
    pub(super) place: StateDirArg,
    #[command(flatten)]
    output: OutputArgs,
}

pub(crate) fn run(args: &EventsArgs, state_dir: &StateDir) -> Result<(), Failure> {
    let target = match args.follow {
        true => format!("{}?follow", wire::EVENTS),
        false => wire::EVENTS.to_owned(),
    };
    block_on(async {
        let mut client = Client::of(state_dir, &args.id).await?;
        client
            .lines(&target, |line| {
                let shown = match args.output.json {
                    true => line.to_owned(),
                    false => text(line)?,
                };
                output::line(&shown).map(|reader| reader == Reader::Reads)
            })
            .await
    })
}

/// The time, the event's name, and its fields as `name=value`, below it a daemon's last lines: events of a later version can be read too.
fn text(line: &str) -> Result<String, Failure> {
    let event: serde_json::Map<String, Value> =
        serde_json::from_str(line).map_err(|e| Failure::new("understand an event", &e))?;
    if let Some(count) = event.get("lost") {
        return Ok(format!("… {count} events are missing here"));
    }
    let word = |name| event.get(name).and_then(Value::as_str).unwrap_or_default();
    let mut text = format!("{}  {}", word("time"), word("event"));
    for (name, value) in &event {
        if !matches!(name.as_str(), "seq" | "time" | "sandbox" | "event") {
            let value = match serde_json::from_value::<Exit>(value.clone()) {
                // Its lines follow.
                Ok(exit) => format!("the daemon {}", exit.cause),
                Err(_) => value.as_str().map_or_else(|| value.to_string(), str::to_owned),
            };
            text = format!("{text}  {name}={value}");
        }
    }
    let lines = |value: &Value| value.get("last_lines")?.as_array().cloned();
    for line in event.get("exit").and_then(lines).unwrap_or_default() {
        let _ = write!(text, "\n    {}", line.as_str().unwrap_or_default());
    }
    Ok(text)
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use super::*;

    #[test]
    fn an_event_is_a_line_whatever_its_fields() {
        let line =
            r#"{"seq":3,"time":"2026-11-24T11:00:00Z","sandbox":"s1","event":"new","at":"/m","n":[1]}"#;
        assert_eq!(text(line).unwrap(), "2026-11-24T11:00:00Z  new  at=/m  n=[1]");
        let line = r#"{"seq":3,"time":"T","sandbox":"s1","event":"exited","exit":{"cause":{"signal":9},"last_lines":["a","b"]}}"#;
        assert_eq!(
            text(line).unwrap(),
            "T  exited  exit=the daemon was ended by signal 9\n    a\n    b"
        );
        assert_eq!(text(r#"{"lost":7}"#).unwrap(), "… 7 events are missing here");
    }
}
