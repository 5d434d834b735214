//! What the recording's loop waits for.

use std::os::fd::OwnedFd;

use tokio::{
    io::unix::{AsyncFd, AsyncFdReadyGuard},
    signal::unix::{Signal, SignalKind, signal},
};

/// The signals that end a recording in good order.
pub struct Signals([Signal; 3]);

impl Signals {
    /// Takes them over from the default action.
    pub fn new() -> std::io::Result<Self> {
        Ok(Self([
            signal(SignalKind::interrupt())?,
            signal(SignalKind::terminate())?,
            signal(SignalKind::hangup())?,
        ]))
    }

    /// Waits for any of them.
    pub async fn any(&mut self) {
        let [interrupt, terminate, hangup] = &mut self.0;
        tokio::select! {
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
            _ = hangup.recv() => {}
        }
    }
}

/// A descriptor that the event loop watches for readability.
pub fn watched(fd: OwnedFd) -> std::io::Result<AsyncFd<OwnedFd>> {
    // SAFETY: the `AsyncFd` owns the descriptor, so it stays open, and an `OwnedFd` always gives the same one.
    Ok(unsafe { AsyncFd::register_with_interest(fd, tokio::io::Interest::READABLE) }?)
}

/// Waits for a point in time, for ever without one.
pub async fn until(deadline: Option<tokio::time::Instant>) {
    match deadline {
        Some(deadline) => tokio::time::sleep_until(deadline).await,
        None => std::future::pending().await,
    }
}

/// The readiness is consumed whatever the ring holds: it is emptied each time.
pub fn clear<T: std::os::fd::AsRawFd>(guard: std::io::Result<AsyncFdReadyGuard<'_, T>>) {
    if let Ok(mut guard) = guard {
        guard.clear_ready();
    }
}

/// Waits until one of the descriptors can be read.
pub async fn any_readable(fds: &[AsyncFd<OwnedFd>]) {
    std::future::poll_fn(|context| {
        let mut ready = std::task::Poll::Pending;
        for fd in fds {
            if let std::task::Poll::Ready(guard) = fd.poll_read_ready(context) {
                clear(guard);
                ready = std::task::Poll::Ready(());
            }
        }
        ready
    })
    .await;
}
