//! A proxy through which a daemon fetches blobs, on the command line.

use clap::Args;
use nydusbox_image::source::{BlobProxy, HttpUrl};

#[derive(Debug, Args)]
#[command(next_help_heading = "Registry options")]
pub(super) struct BlobProxyArgs {
    /// Proxy through which the daemon fetches blobs: Dragonfly's, or any other for HTTP (docs/dragonfly.md)
    #[arg(long, value_name = "URL", requires = "image")]
    blob_proxy: Option<HttpUrl>,
    /// What answers with success while the proxy is of use; meanwhile the registry is asked itself
    #[arg(long, value_name = "URL", requires = "blob_proxy")]
    blob_proxy_ping: Option<HttpUrl>,
    /// Don't ask the registry itself for what the proxy does not give
    #[arg(long, requires = "blob_proxy")]
    no_blob_proxy_fallback: bool,
    /// Ask the proxy for http:// where the registry has https://, so that it can keep what passes
    #[arg(long, requires = "blob_proxy")]
    blob_proxy_use_http: bool,
}

impl BlobProxyArgs {
    pub(super) fn proxy(&self) -> Option<BlobProxy> {
        let mut proxy = BlobProxy::new(self.blob_proxy.clone()?);
        proxy.ping_url.clone_from(&self.blob_proxy_ping);
        proxy.fallback = !self.no_blob_proxy_fallback;
        proxy.use_http = self.blob_proxy_use_http;
        Some(proxy)
    }
}
