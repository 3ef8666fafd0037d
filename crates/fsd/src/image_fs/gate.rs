//! Keeps prefetching out of the way of what a guest waits for.

use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

#[derive(Debug, Default)]
struct State {
    busy: usize,
    closed: bool,
}

/// Counts the fetches that somebody waits for. Prefetching makes its next request when there are none.
#[derive(Debug, Default)]
pub(super) struct Gate {
    state: Mutex<State>,
    changed: Condvar,
}

/// A fetch that somebody waits for, as long as it lives.
#[derive(Debug)]
pub(super) struct Pass<'a>(&'a Gate);

impl Gate {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A fetch begins that somebody waits for.
    pub(super) fn pass(&self) -> Pass<'_> {
        self.state().busy += 1;
        Pass(self)
    }

    /// Waits until nobody waits for a fetch; false if there is no more prefetching to be done.
    pub(super) fn wait_until_calm(&self) -> bool {
        let mut state = self.state();
        while state.busy > 0 && !state.closed {
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        !state.closed
    }

    /// Waits for this long; false if there is no more prefetching to be done, as soon as that is so.
    pub(super) fn pause(&self, span: Duration) -> bool {
        let open = |state: &mut State| !state.closed;
        let waited = self.changed.wait_timeout_while(self.state(), span, open);
        !waited.unwrap_or_else(PoisonError::into_inner).0.closed
    }

    /// Ends prefetching.
    pub(super) fn close(&self) {
        self.state().closed = true;
        self.changed.notify_all();
    }

    /// Whether it was closed.
    pub(super) fn is_closed(&self) -> bool {
        self.state().closed
    }
}

impl Drop for Pass<'_> {
    fn drop(&mut self) {
        let calm = {
            let mut state = self.0.state();
            state.busy -= 1;
            state.busy == 0
        };
        if calm {
            self.0.changed.notify_all();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;

    #[test]
    fn prefetching_waits_until_the_last_waiter_is_served() {
        let gate = Gate::default();
        let (one, other) = (gate.pass(), gate.pass());
        std::thread::scope(|scope| {
            let (tell, told) = mpsc::channel();
            let gate = &gate;
            scope.spawn(move || tell.send(gate.wait_until_calm()));
            drop(one);
            assert!(told.try_recv().is_err(), "one is still waiting");
            drop(other);
            assert_eq!(told.recv(), Ok(true));
        });
        let _busy = gate.pass();
        assert!(gate.pause(Duration::ZERO));
        gate.close();
        assert!(
            !gate.pause(Duration::MAX),
            "it would be longer than anybody waits"
        );
        assert!(!gate.wait_until_calm() && gate.is_closed());
    }
}
