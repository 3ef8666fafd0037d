//! The one table of the API's endpoints. The server routes by it, the client takes its request lines from it.

use std::fmt;

use percent_encoding::utf8_percent_encode;

use crate::mount_point::QUERY_VALUE;

/// HTTP methods the API uses.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[expect(missing_docs, reason = "the names are HTTP's own")]
pub enum Method {
    Get,
    Put,
    Post,
    Delete,
}

impl Method {
    /// The method as it stands in a request line.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Get => "GET",
            Self::Put => "PUT",
            Self::Post => "POST",
            Self::Delete => "DELETE",
        }
    }

    /// Reads a method from a request line; `None` for those the API has no use for.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        [Self::Get, Self::Put, Self::Post, Self::Delete]
            .into_iter()
            .find(|m| m.as_str() == text)
    }
}

impl fmt::Display for Method {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

macro_rules! endpoints {
    ($($(#[$doc:meta])* $name:ident = $method:ident $path:literal,)*) => {
        /// An operation of the API.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        pub enum Endpoint {
            $($(#[$doc])* $name,)*
        }

        impl Endpoint {
            /// Every endpoint, in the order of the table.
            pub const ALL: &'static [Self] = &[$(Self::$name,)*];

            /// The HTTP method.
            #[must_use]
            pub const fn method(self) -> Method {
                match self { $(Self::$name => Method::$method,)* }
            }

            /// The path, to be matched exactly.
            #[must_use]
            pub const fn path(self) -> &'static str {
                match self { $(Self::$name => $path,)* }
            }
        }
    };
}

endpoints! {
    /// Version, state and every mount with its configuration.
    DaemonInfo = Get "/api/v1/daemon",
    /// Changes the log level.
    Configure = Put "/api/v1/daemon",
    /// Version and state without the mounts: small whatever is mounted, so the one for health checks.
    DaemonInfoV2 = Get "/api/v2/daemon",
    /// As [`Endpoint::Configure`].
    ConfigureV2 = Put "/api/v2/daemon",
    /// READY to RUNNING; refused while RUNNING.
    Start = Put "/api/v1/daemon/start",
    /// Ends the process.
    Exit = Put "/api/v1/daemon/exit",
    /// Hands the FUSE session to a supervisor; `fusedev` only.
    SendFd = Put "/api/v1/daemon/fuse/sendfd",
    /// Takes a FUSE session over; `fusedev` only.
    Takeover = Put "/api/v1/daemon/fuse/takeover",
    /// The last errors of blob backends.
    Events = Get "/api/v1/daemon/events",
    /// The superblock of the RAFS mounted at `mountpoint`.
    Backend = Get "/api/v1/daemon/backend",
    /// Mounts a file system at `mountpoint`.
    Mount = Post "/api/v1/mount",
    /// Gives the RAFS at `mountpoint` a new bootstrap or configuration.
    Remount = Put "/api/v1/mount",
    /// Unmounts what is at `mountpoint`.
    Umount = Delete "/api/v1/mount",
    /// File-system counters of the RAFS mount `id`.
    Metrics = Get "/api/v1/metrics",
    /// Per-file counters.
    MetricsFiles = Get "/api/v1/metrics/files",
    /// Access pattern.
    MetricsPattern = Get "/api/v1/metrics/pattern",
    /// Blob backend counters.
    MetricsBackend = Get "/api/v1/metrics/backend",
    /// Blob cache counters.
    MetricsBlobcache = Get "/api/v1/metrics/blobcache",
    /// Requests being served now.
    MetricsInflight = Get "/api/v1/metrics/inflight",
    /// Begins to record what is read of the RAFS mounted at `mountpoint`. The embedded daemon's own, as the next two.
    StartTrace = Put "/api/v1/trace",
    /// What was recorded.
    Trace = Get "/api/v1/trace",
    /// Ends recording.
    StopTrace = Delete "/api/v1/trace",
    /// Everything that is counted, as Prometheus reads it. The embedded daemon's own.
    Prometheus = Get "/metrics",
    /// Adds a blob; `singleton` only.
    PutBlob = Put "/api/v2/blobs",
    /// Lists blobs; `singleton` only.
    GetBlob = Get "/api/v2/blobs",
    /// Removes a blob; `singleton` only.
    DeleteBlob = Delete "/api/v2/blobs",
}

impl Endpoint {
    /// The path with one parameter, percent-encoded.
    #[must_use]
    pub fn with(self, parameter: &str, value: &str) -> String {
        format!(
            "{}?{parameter}={}",
            self.path(),
            utf8_percent_encode(value, QUERY_VALUE)
        )
    }
}

/// What a request line leads to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Route {
    /// An endpoint of the table.
    Found(Endpoint),
    /// The path is known, the method is not one of its own.
    WrongMethod,
    /// The path is unknown.
    UnknownPath,
}

/// Finds the endpoint for a method and a path without its query.
#[must_use]
pub fn route(method: &str, path: &str) -> Route {
    let mut known = false;
    for &endpoint in Endpoint::ALL.iter().filter(|e| e.path() == path) {
        if endpoint.method().as_str() == method {
            return Route::Found(endpoint);
        }
        known = true;
    }
    if known {
        Route::WrongMethod
    } else {
        Route::UnknownPath
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_endpoint_routes_to_itself() {
        for &e in Endpoint::ALL {
            assert_eq!(route(e.method().as_str(), e.path()), Route::Found(e));
        }
    }

    #[test]
    fn a_parameter_is_encoded() {
        let target = Endpoint::MetricsBackend.with("id", "/rafs/c 1&x=%");
        assert_eq!(target, "/api/v1/metrics/backend?id=/rafs/c%201%26x%3D%25");
    }

    #[test]
    fn paths_match_exactly() {
        assert_eq!(route("GET", "/api/v1/daemon/"), Route::UnknownPath);
        assert_eq!(route("GET", "/api/v1/mount"), Route::WrongMethod);
        assert_eq!(route("OPTIONS", "/api/v1/daemon"), Route::WrongMethod);
    }
}
