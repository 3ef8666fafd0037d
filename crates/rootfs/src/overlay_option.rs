//! The words of an overlay mount: what one option is, and how lists of options and of directories are split.
//!
//! overlayfs' own escapes hold: `\,` is no separator of options, `\:` none of directories.

/// What one option is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum OverlayOption<'a> {
    /// `lowerdir=`, topmost first.
    Lowerdir(&'a str),
    /// `upperdir=`.
    Upperdir(&'a str),
    /// `workdir=`.
    Workdir(&'a str),
    /// `extraoption=`, for a runtime and never for the kernel.
    ExtraOption(&'a str),
    /// `io.katacontainers.volume=`, likewise.
    VirtualVolume(&'a str),
    /// Anything else.
    Other(&'a str),
}

impl<'a> OverlayOption<'a> {
    pub(crate) fn of(option: &'a str) -> Self {
        let value = |key| option.strip_prefix(key);
        if let Some(dirs) = value("lowerdir=") {
            Self::Lowerdir(dirs)
        } else if let Some(dir) = value("upperdir=") {
            Self::Upperdir(dir)
        } else if let Some(dir) = value("workdir=") {
            Self::Workdir(dir)
        } else if let Some(value) = value("extraoption=") {
            Self::ExtraOption(value)
        } else if let Some(value) = value("io.katacontainers.volume=") {
            Self::VirtualVolume(value)
        } else {
            Self::Other(option)
        }
    }
}

/// Splits at every `separator` that no backslash precedes. Joining the parts with it gives `text` again.
pub(crate) fn split(text: &str, separator: char) -> impl Iterator<Item = &str> {
    let mut escaped = false;
    text.split(move |c| {
        let splits = c == separator && !escaped;
        escaped = c == '\\' && !escaped;
        splits
    })
}

/// `text` without its escaping backslashes.
pub(crate) fn unescape(text: &str) -> String {
    let mut plain = String::with_capacity(text.len());
    let mut chars = text.chars();
    while let Some(c) = chars.next() {
        match c {
            '\\' => plain.extend(chars.next()),
            c => plain.push(c),
        }
    }
    plain
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn escaped_separators_split_nothing() {
        let parts = |text| split(text, ':').collect::<Vec<_>>();
        assert_eq!(parts(r"/a\:b:/c\\:d"), [r"/a\:b", r"/c\\", "d"]);
        assert_eq!(parts(""), [""]);
        assert_eq!(parts("a::b:"), ["a", "", "b", ""]);
        assert_eq!(unescape(r"/a\:b\\c\"), r"/a:b\c");
    }

    proptest! {
        /// The model walks the text from the left with the rule of overlayfs' `ovl_next_opt`.
        #[test]
        fn splitting_loses_nothing_and_agrees_with_the_kernel(text in r"[a\\:,]{0,24}") {
            let parts: Vec<&str> = split(&text, ':').collect();
            prop_assert_eq!(parts.join(":"), text.clone());
            let bytes = text.as_bytes();
            let (mut model, mut start, mut at) = (Vec::new(), 0, 0);
            while at < bytes.len() {
                match bytes[at] {
                    b'\\' => at += 1,
                    b':' => {
                        model.push(&text[start..at]);
                        start = at + 1;
                    }
                    _ => {}
                }
                at += 1;
            }
            model.push(&text[start..]);
            prop_assert_eq!(parts, model);
        }
    }
}
