//! Query strings, decoded as HTML forms are: `+` is a space, `%xx` a byte.

use percent_encoding::percent_decode_str;

/// The value of a parameter; the first where it stands several times.
pub(super) fn value(query: &str, name: &str) -> Option<String> {
    query.split('&').find_map(|pair| {
        let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
        (key == name).then(|| {
            percent_decode_str(&value.replace('+', " "))
                .decode_utf8_lossy()
                .into_owned()
        })
    })
}

#[cfg(test)]
mod tests {
    use super::value;

    #[test]
    fn decodes_like_a_form() {
        assert_eq!(
            value("mountpoint=%2Fa%2Bb", "mountpoint").as_deref(),
            Some("/a+b")
        );
        assert_eq!(
            value("x=1&mountpoint=/a+b", "mountpoint").as_deref(),
            Some("/a b")
        );
        assert_eq!(value("latest", "latest").as_deref(), Some(""));
        assert_eq!(value("", "id"), None);
    }
}
