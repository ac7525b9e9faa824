//! What a `WWW-Authenticate` header asks for (RFC 9110, section 11.6.1). Pure parsing of a stranger's text.

/// How a registry wants to be told who asks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Challenge {
    /// User and password with every request.
    Basic,
    /// A token of another server (distribution's token authentication specification).
    Bearer {
        /// The server's address.
        realm: String,
        service: Option<String>,
        scope: Option<String>,
    },
}

/// The challenges of a header that are understood, in its order. A part that does not follow the grammar ends it.
pub(crate) fn parse(header: &str) -> Vec<Challenge> {
    let mut challenges = Vec::new();
    let mut rest = header;
    while let Some((scheme, after)) = token(skip(rest, " \t,")) {
        let (parameters, after) = parameters(after);
        let get = |name: &str| {
            let found = parameters.iter().find(|(key, _)| key.eq_ignore_ascii_case(name));
            found.map(|(_, value)| value.clone())
        };
        if scheme.eq_ignore_ascii_case("basic") {
            challenges.push(Challenge::Basic);
        } else if scheme.eq_ignore_ascii_case("bearer")
            && let Some(realm) = get("realm")
        {
            challenges.push(Challenge::Bearer {
                realm,
                service: get("service"),
                scope: get("scope").filter(|scope| !scope.is_empty()),
            });
        }
        rest = after;
    }
    challenges
}

/// `name=value` pairs up to the next scheme or the end.
fn parameters(text: &str) -> (Vec<(String, String)>, &str) {
    let mut parameters = Vec::new();
    let mut rest = text;
    loop {
        let next = skip(rest, " \t,");
        let Some((name, after)) = token(next) else {
            return (parameters, next);
        };
        let Some(after) = skip(after, " \t").strip_prefix('=') else {
            return (parameters, next);
        };
        let Some((value, after)) = value(skip(after, " \t")) else {
            return (parameters, "");
        };
        parameters.push((name.to_owned(), value));
        rest = after;
    }
}

/// A token or a quoted string.
fn value(text: &str) -> Option<(String, &str)> {
    let Some(quoted) = text.strip_prefix('"') else {
        let end = text.find([',', ' ', '\t']).unwrap_or(text.len());
        return (end > 0).then(|| (text[..end].to_owned(), &text[end..]));
    };
    let mut value = String::new();
    let mut letters = quoted.char_indices();
    while let Some((index, letter)) = letters.next() {
        match letter {
            '"' => return Some((value, &quoted[index + 1..])),
            '\\' => value.push(letters.next()?.1),
            letter => value.push(letter),
        }
    }
    None
}

fn token(text: &str) -> Option<(&str, &str)> {
    let is_token = |letter: char| letter.is_ascii_alphanumeric() || "!#$%&'*+-.^_`|~".contains(letter);
    let end = text.find(|letter| !is_token(letter)).unwrap_or(text.len());
    (end > 0).then(|| text.split_at(end))
}

fn skip<'a>(text: &'a str, what: &str) -> &'a str {
    text.trim_start_matches(|letter| what.contains(letter))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bearer(realm: &str, service: Option<&str>, scope: Option<&str>) -> Challenge {
        Challenge::Bearer {
            realm: realm.into(),
            service: service.map(str::to_owned),
            scope: scope.map(str::to_owned),
        }
    }

    #[test]
    fn challenges_of_real_registries_are_understood() {
        for (header, expected) in [
            (
                r#"Bearer realm="https://auth.docker.io/token",service="registry.docker.io",scope="repository:library/debian:pull""#,
                vec![bearer(
                    "https://auth.docker.io/token",
                    Some("registry.docker.io"),
                    Some("repository:library/debian:pull"),
                )],
            ),
            (r#"Basic realm="Registry Realm""#, vec![Challenge::Basic]),
            ("basic", vec![Challenge::Basic]),
            (
                r#"Negotiate, Basic realm="a, b", bearer REALM = "https://x/\"y" , scope=*"#,
                vec![Challenge::Basic, bearer("https://x/\"y", None, Some("*"))],
            ),
            (
                r#"Bearer realm=https://x/t,error="invalid_token",scope="""#,
                vec![bearer("https://x/t", None, None)],
            ),
        ] {
            assert_eq!(parse(header), expected, "{header}");
        }
    }

    #[test]
    fn what_is_no_challenge_is_none() {
        for header in [
            "",
            ",,,",
            "Digest realm=\"x\"",
            "Bearer",
            "Bearer service=\"x\"",
            "Bearer realm=\"open",
            "\"x\"",
        ] {
            assert_eq!(parse(header), [], "{header}");
        }
    }

    proptest::proptest! {
        #[test]
        fn any_text_is_read_to_its_end(header in "(Bearer|Basic|realm|scope|[=,\" \\\\]|\\PC){0,30}") {
            parse(&header);
        }
    }
}
