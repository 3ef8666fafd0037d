//! URLs without the user and the password in them, for whatever is shown or written down.
//!
//! Pure. Where a URL has to end can't always be told from its text; then rather too much is cut out than too little.

/// Cuts `user:password@` out of every URL in a line, in which a URL ends at the latest where it can't go on: at a
/// space, or at the quote after it.
#[must_use]
pub fn without_userinfo(line: &str) -> String {
    cut(line, |c| c.is_whitespace() || c == '"')
}

/// The same of a value that is a URL, whatever somebody has put into its password.
pub(crate) fn value_without_userinfo(value: &str) -> String {
    cut(value, |_| false)
}

fn cut(text: &str, ends: impl Fn(char) -> bool) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find("://") {
        let (head, tail) = rest.split_at(at + 3);
        out.push_str(head);
        // Nothing else ends what a password may be in: commas and brackets are good characters for one.
        let end = tail
            .find(|c| matches!(c, '/' | '?' | '#') || ends(c))
            .unwrap_or(tail.len());
        rest = match tail[..end].rfind('@') {
            Some(user) => &tail[user + 1..],
            None => tail,
        };
    }
    out.push_str(rest);
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    /// URLs, and what is shown of each.
    const URLS: [(&str, &str); 12] = [
        ("http://u:p@h:3128/x@y", "http://h:3128/x@y"),
        ("http://u:p@h", "http://h"),
        ("http://p@h?a=b@c", "http://h?a=b@c"),
        ("http://u:p,w@h/", "http://h/"),
        ("http://u:p)w@h/", "http://h/"),
        ("http://u:(p)'!$&*+;=w@h/", "http://h/"),
        ("http://u:p@w@h#@", "http://h#@"),
        ("http://u:p@[::1]:1/", "http://[::1]:1/"),
        ("http://h/a@b", "http://h/a@b"),
        ("https://h:5000", "https://h:5000"),
        ("socks5://u:p@h:1080", "socks5://h:1080"),
        ("not a url", "not a url"),
    ];

    #[test]
    fn the_same_is_cut_out_of_lines_and_values() {
        for (url, shown) in URLS {
            assert_eq!(value_without_userinfo(url), shown);
            assert_eq!(without_userinfo(url), shown);
            for (before, after) in [
                ("proxy: \"", "\", ping: a@b"),
                ("asked ", " for x@y"),
                ("https://first.io/ ", ""),
                ("https://u:p@first.io ", " http://last.io"),
            ] {
                let line = format!("{before}{url}{after}");
                let expected = format!("{before}{shown}{after}").replace("u:p@first", "first");
                assert_eq!(without_userinfo(&line), expected);
            }
        }
    }

    #[test]
    fn of_a_value_that_is_no_good_url_rather_too_much_is_cut_out() {
        for url in ["http://u:p w@h/", "http://u:p\"w@h/"] {
            assert_eq!(value_without_userinfo(url), "http://h/");
        }
    }
}
