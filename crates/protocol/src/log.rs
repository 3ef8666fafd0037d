//! Lines of the daemon's log that its supervisor understands: they only say sooner what the API says when asked.

/// A VMM has connected to the vhost-user socket.
pub const FRONTEND_CONNECTED: &str = "frontend connected";
/// It is not connected any more.
pub const FRONTEND_LEFT: &str = "frontend left";
