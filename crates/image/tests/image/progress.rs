//! Progress is told truly, and asking to stop stops.

use std::cell::{Cell, RefCell};
use std::fs;
use std::time::Duration;

use nydusbox_image::{BuildConfig, BuildError, Phase, Progress, Source, build};

use crate::{names, temp_dir, tree};

#[derive(Debug, PartialEq, Eq, Clone, Copy)]
enum Event {
    Begin(Phase, Option<u64>),
    Position(u64),
}

#[derive(Default)]
struct Recorder {
    events: RefCell<Vec<Event>>,
    /// Stop at the first question of this phase.
    cancel_in: Option<Phase>,
    phase: Cell<Option<Phase>>,
}

impl Progress for Recorder {
    /// However fast the machine is, there is something to be told between beginning and end.
    fn interval(&self) -> Duration {
        Duration::from_millis(1)
    }

    fn begin(&self, phase: Phase, total: Option<u64>) {
        self.phase.set(Some(phase));
        self.events.borrow_mut().push(Event::Begin(phase, total));
    }

    fn position(&self, position: u64) {
        self.events.borrow_mut().push(Event::Position(position));
    }

    fn is_cancelled(&self) -> bool {
        self.cancel_in.is_some() && self.phase.get() == self.cancel_in
    }
}

/// A tree that takes the builder a few reports to get through.
fn sources(dir: &std::path::Path) -> (u64, [Source; 2]) {
    let source = dir.join("source");
    fs::create_dir(&source).unwrap();
    let file_bytes: usize = 4 << 20;
    let files = 24_u8;
    for number in 0..files {
        fs::write(
            source.join(number.to_string()),
            tree::noise(u64::from(number) * 2, file_bytes),
        )
        .unwrap();
    }
    let archive = dir.join("archive");
    tree::archive(&source, &archive, false);
    let bytes = file_bytes as u64 * u64::from(files);
    (bytes, [Source::Directory(source), Source::Tar(archive)])
}

#[test]
fn positions_rise_to_the_total() {
    let dir = temp_dir();
    let (content_bytes, sources) = sources(dir.path());
    for source in sources {
        let total = match &source {
            Source::Tar(path) => path.metadata().unwrap().len(),
            _ => content_bytes,
        };
        let out = dir.path().join("image");
        let recorder = Recorder::default();
        build(&BuildConfig::new(source, &out).force(true), &recorder).unwrap();
        let events = recorder.events.into_inner();
        let data = events
            .iter()
            .position(|event| *event == Event::Begin(Phase::Data, Some(total)))
            .unwrap();
        assert_eq!(events[0], Event::Begin(Phase::Scan, None));
        assert_eq!(events.last(), Some(&Event::Begin(Phase::Finish, None)));
        let positions = &events[data + 1..events.len() - 1];
        let values: Vec<_> = positions
            .iter()
            .map(|event| match event {
                Event::Position(position) => *position,
                Event::Begin(..) => panic!("{events:?}"),
            })
            .collect();
        assert!(values.is_sorted() && values.last() == Some(&total), "{values:?}");
        // The first may come before there is anything, and the last is always the total; one between was measured.
        assert!(
            values.iter().any(|value| (1..total).contains(value)),
            "{values:?} of {total}"
        );
    }
}

#[test]
fn a_cancelled_build_leaves_nothing() {
    let dir = temp_dir();
    let (_, sources) = sources(dir.path());
    for source in sources {
        for phase in [Phase::Data, Phase::Finish] {
            let recorder = Recorder {
                cancel_in: Some(phase),
                ..Recorder::default()
            };
            let result = build(
                &BuildConfig::new(source.clone(), dir.path().join("image")),
                &recorder,
            );
            assert!(
                matches!(result, Err(BuildError::Cancelled)),
                "{phase:?} {result:?}"
            );
            assert_eq!(recorder.phase.get(), Some(phase));
            assert_eq!(names(dir.path()), ["archive", "source"]);
        }
    }
}

#[test]
fn a_cancelled_scan_ends_early() {
    let dir = temp_dir();
    let source = dir.path().join("source");
    fs::create_dir(&source).unwrap();
    for number in 0..300 {
        fs::write(source.join(number.to_string()), b"").unwrap();
    }
    let recorder = Recorder {
        cancel_in: Some(Phase::Scan),
        ..Recorder::default()
    };
    let result = build(
        &BuildConfig::new(Source::Directory(source), dir.path().join("image")),
        &recorder,
    );
    assert!(matches!(result, Err(BuildError::Cancelled)));
    assert_eq!(names(dir.path()), ["source"]);
}
