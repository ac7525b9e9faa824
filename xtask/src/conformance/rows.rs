//! The rows: what has to hold.

use crate::tidy::Tree;

/// What a row is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Theme {
    /// A field of the OCI runtime specification.
    Oci,
    /// A method of the agent's API.
    Api,
    /// A behaviour.
    Semantics,
}

impl Theme {
    /// As claims say it.
    pub(super) const fn word(self) -> &'static str {
        match self {
            Self::Oci => "oci",
            Self::Api => "api",
            Self::Semantics => "semantics",
        }
    }
}

/// What a row's tests have to be seen on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Needs {
    /// Every backend.
    Backend,
    /// Every backend that has a guest: a process of the host has nothing of it that could be seen.
    Guest,
    /// None: it is about images, which no guest has to be booted for.
    Nothing,
}

/// One row.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Row {
    pub(super) theme: Theme,
    pub(super) key: String,
    pub(super) text: String,
    /// Where it is listed.
    pub(super) file: String,
    pub(super) needs: Needs,
}

impl Row {
    /// Its name in claims: `oci process.args`.
    pub(super) fn name(&self) -> String {
        format!("{} {}", self.theme.word(), self.key)
    }

    /// Whether a claim means this row.
    pub(super) fn is(&self, claimed: &str) -> bool {
        self.name() == claimed
    }
}

/// The lists of rows.
const LISTS: [(Theme, &str); 2] = [
    (Theme::Oci, "xtask/conformance/oci.txt"),
    (Theme::Semantics, "xtask/conformance/semantics.txt"),
];

/// Where services are defined.
const PROTOS: [&str; 3] = [
    "kata-agent-proto/protos/agent.proto",
    "kata-agent-proto/protos/health.proto",
    "kata-agent-proto/protos/kata.proto",
];

/// Every row, theme by theme, as it is listed.
pub(super) fn all(tree: &Tree, mistakes: &mut Vec<(String, String)>) -> Vec<Row> {
    let mut rows = Vec::new();
    for (theme, file) in LISTS {
        match tree.text(file) {
            Some(text) => rows.extend(listed(theme, file, text, mistakes)),
            None => mistakes.push((file.to_owned(), "the list is missing".to_owned())),
        }
    }
    for file in PROTOS {
        rows.extend(methods(file, tree.text(file).unwrap_or_default()));
    }
    rows.sort_by_key(|row| row.theme);
    rows
}

/// Lines of `key: text`; a key may be followed by ` (image)` or ` (guest)`.
fn listed(theme: Theme, file: &str, text: &str, mistakes: &mut Vec<(String, String)>) -> Vec<Row> {
    let mut rows: Vec<Row> = Vec::new();
    for (number, line) in text.lines().enumerate() {
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        let place = format!("{file}:{}", number + 1);
        let Some((key, text)) = line.split_once(": ") else {
            mistakes.push((place, "a row is `key: text`".to_owned()));
            continue;
        };
        let marked = |mark| key.strip_suffix(mark);
        let (key, needs) = match (marked(" (image)"), marked(" (guest)")) {
            (Some(key), _) => (key, Needs::Nothing),
            (_, Some(key)) => (key, Needs::Guest),
            _ => (key, Needs::Backend),
        };
        if rows.iter().any(|row| row.key == key) {
            mistakes.push((place, format!("`{key}` is listed twice")));
            continue;
        }
        rows.push(Row {
            theme,
            key: key.to_owned(),
            text: text.to_owned(),
            file: file.to_owned(),
            needs,
        });
    }
    rows
}

/// The methods of the services in a definition.
fn methods(file: &str, text: &str) -> Vec<Row> {
    let mut service = "";
    let mut rows = Vec::new();
    for line in text.lines().map(str::trim) {
        if let Some(rest) = line.strip_prefix("service ") {
            service = rest.split_whitespace().next().unwrap_or_default();
        }
        let Some((name, _)) = line.strip_prefix("rpc ").and_then(|rest| rest.split_once('(')) else {
            continue;
        };
        rows.push(Row {
            theme: Theme::Api,
            key: name.trim().to_owned(),
            text: service.to_owned(),
            file: file.to_owned(),
            needs: Needs::Backend,
        });
    }
    rows
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_list_is_keys_and_texts() {
        let mut mistakes = Vec::new();
        let text = "# what it is\na.b: one: two\n24 (image): files\n16 (guest): disks\na.b: again\nodd\n";
        let rows = listed(Theme::Oci, "l.txt", text, &mut mistakes);
        let found: Vec<_> = rows
            .iter()
            .map(|row| (row.name(), row.text.as_str(), row.needs))
            .collect();
        assert_eq!(
            found,
            [
                ("oci a.b".to_owned(), "one: two", Needs::Backend),
                ("oci 24".to_owned(), "files", Needs::Nothing),
                ("oci 16".to_owned(), "disks", Needs::Guest)
            ]
        );
        let places: Vec<_> = mistakes.iter().map(|(place, _)| place.as_str()).collect();
        assert_eq!(places, ["l.txt:5", "l.txt:6"]);
    }

    #[test]
    fn methods_are_those_of_every_service() {
        let text = "service A {\n  // Says rpc Nothing()\n  rpc One(X) returns (Y);\n}\nservice B {\n  rpc Two (X) returns (Y) {}\n}\n";
        let rows = methods("p.proto", text);
        let found: Vec<_> = rows.iter().map(|row| (row.name(), row.text.as_str())).collect();
        assert_eq!(found, [("api One".to_owned(), "A"), ("api Two".to_owned(), "B")]);
    }
}
