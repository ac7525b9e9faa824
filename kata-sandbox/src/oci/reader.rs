//! Reading JSON strictly: each value knows the path that leads to it, and an object is done with only when nothing of
//! it is left. Must not know what the fields mean.

use std::collections::HashMap;
use std::fmt::{self, Display};

use serde_json::{Map, Value};

use crate::error::{Error, ErrorKind};
use crate::report::Stage;

/// The most of a text that a message repeats.
const QUOTED_CHARS_MAX: usize = 80;

/// A value and where it was found, as `process.rlimits[2].type`.
#[derive(Debug)]
pub(super) struct Node {
    path: String,
    value: Value,
}

/// An object whose fields are taken one by one.
#[derive(Debug)]
pub(super) struct Object {
    path: String,
    fields: Map<String, Value>,
}

fn error(kind: ErrorKind, path: &str, what: impl Display) -> Error {
    let path = if path.is_empty() {
        "the specification"
    } else {
        path
    };
    Error::new(kind, Stage::Plan, format!("{path}: {what}"))
}

/// A text as a message repeats it.
pub(super) fn quoted(text: &str) -> String {
    match text.char_indices().nth(QUOTED_CHARS_MAX) {
        Some((end, _)) => format!("{:?}…", &text[..end]),
        None => format!("{text:?}"),
    }
}

fn kind_of(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "a boolean",
        Value::Number(_) => "a number",
        Value::String(_) => "a string",
        Value::Array(_) => "an array",
        Value::Object(_) => "an object",
    }
}

impl Node {
    /// The whole document.
    pub(super) fn parse(json: &str) -> Result<Self, Error> {
        let value = serde_json::from_str(json)
            .map_err(|cause| error(ErrorKind::InvalidContainer, "", "is no JSON").with_source(cause))?;
        Ok(Self {
            path: String::new(),
            value,
        })
    }

    /// A value without meaning.
    pub(super) fn invalid(&self, what: impl Display) -> Error {
        error(ErrorKind::InvalidContainer, &self.path, what)
    }

    /// A value whose meaning a sandbox does not have.
    pub(super) fn unsupported(&self, why: impl Display) -> Error {
        error(ErrorKind::Unsupported, &self.path, why)
    }

    fn wrong_type(&self, wanted: &str) -> Error {
        self.invalid(format_args!("is {}, not {wanted}", kind_of(&self.value)))
    }

    pub(super) fn object(self) -> Result<Object, Error> {
        match self.value {
            Value::Object(fields) => Ok(Object {
                path: self.path,
                fields,
            }),
            _ => Err(self.wrong_type("an object")),
        }
    }

    pub(super) fn array(self) -> Result<Vec<Node>, Error> {
        match self.value {
            Value::Array(items) => {
                let item = |(index, value)| Node {
                    path: format!("{}[{index}]", self.path),
                    value,
                };
                Ok(items.into_iter().enumerate().map(item).collect())
            }
            _ => Err(self.wrong_type("an array")),
        }
    }

    /// How many items an array has; none where it is none.
    pub(super) fn len(&self) -> Option<usize> {
        self.value.as_array().map(Vec::len)
    }

    /// The items of an array, each read by `read`.
    pub(super) fn list<T>(self, read: impl FnMut(Node) -> Result<T, Error>) -> Result<Vec<T>, Error> {
        self.array()?.into_iter().map(read).collect()
    }

    /// A text; the kernel ends texts at a NUL, so there is none in it.
    pub(super) fn text(&self) -> Result<&str, Error> {
        match &self.value {
            Value::String(text) if text.contains('\0') => Err(self.invalid("contains a NUL byte")),
            Value::String(text) => Ok(text),
            _ => Err(self.wrong_type("a string")),
        }
    }

    pub(super) fn string(self) -> Result<String, Error> {
        self.text().map(str::to_owned)
    }

    pub(super) fn strings(self) -> Result<Vec<String>, Error> {
        self.list(Node::string)
    }

    /// An absolute path.
    pub(super) fn absolute(self) -> Result<String, Error> {
        match self.text()? {
            path if path.starts_with('/') => Ok(path.to_owned()),
            path => Err(self.invalid(format_args!("{} is not an absolute path", quoted(path)))),
        }
    }

    /// One of these words.
    pub(super) fn word(self, known: &[&str]) -> Result<String, Error> {
        match self.text()? {
            word if known.contains(&word) => Ok(word.to_owned()),
            word => Err(self.invalid(format_args!("{} is none of {}", quoted(word), known.join(", ")))),
        }
    }

    pub(super) fn bool(self) -> Result<bool, Error> {
        self.value.as_bool().ok_or_else(|| self.wrong_type("a boolean"))
    }

    /// A whole number that fits.
    pub(super) fn number<T: TryFrom<i128>>(self) -> Result<T, Error> {
        let Value::Number(number) = &self.value else {
            return Err(self.wrong_type("a number"));
        };
        let whole = number
            .as_i64()
            .map(i128::from)
            .or_else(|| number.as_u64().map(i128::from));
        let fitting = whole.and_then(|whole| T::try_from(whole).ok());
        fitting.ok_or_else(|| self.invalid(format_args!("{number} is out of range")))
    }

    /// A whole number within bounds.
    pub(super) fn within<T>(self, bounds: std::ops::RangeInclusive<T>) -> Result<T, Error>
    where
        T: TryFrom<i128> + PartialOrd + fmt::Display,
    {
        let (path, shown) = (self.path.clone(), self.value.to_string());
        let number = self.number()?;
        if bounds.contains(&number) {
            return Ok(number);
        }
        let what = format_args!("{shown} is not within {} and {}", bounds.start(), bounds.end());
        Err(error(ErrorKind::InvalidContainer, &path, what))
    }

    /// An object of texts by names that nobody can foresee.
    pub(super) fn texts(self) -> Result<HashMap<String, String>, Error> {
        self.entries(Node::string)
    }

    /// An object by names that nobody can foresee, each value read by `read`.
    pub(super) fn entries<T>(
        self,
        mut read: impl FnMut(Node) -> Result<T, Error>,
    ) -> Result<HashMap<String, T>, Error> {
        let Object { path, fields } = self.object()?;
        let entry = |(name, value): (String, Value)| {
            if name.is_empty() || name.contains('\0') {
                let what = format_args!("{} is no name", quoted(&name));
                return Err(error(ErrorKind::InvalidContainer, &path, what));
            }
            let node = Node {
                path: format!("{path}.{name}"),
                value,
            };
            Ok((name, read(node)?))
        };
        fields.into_iter().map(entry).collect()
    }
}

impl Object {
    fn path_of(&self, name: &str) -> String {
        match self.path.as_str() {
            "" => name.to_owned(),
            path => format!("{path}.{name}"),
        }
    }

    /// A fault of the object as a whole.
    pub(super) fn invalid(&self, what: impl Display) -> Error {
        error(ErrorKind::InvalidContainer, &self.path, what)
    }

    /// A field, if it is there.
    pub(super) fn take(&mut self, name: &str) -> Option<Node> {
        let value = self.fields.remove(name)?;
        Some(Node {
            path: self.path_of(name),
            value,
        })
    }

    /// A field, read by `read`; the default where it is not there.
    pub(super) fn read<T: Default>(
        &mut self,
        name: &str,
        read: impl FnOnce(Node) -> Result<T, Error>,
    ) -> Result<T, Error> {
        self.take(name).map_or_else(|| Ok(T::default()), read)
    }

    /// A field that has to be there.
    pub(super) fn need(&mut self, name: &str) -> Result<Node, Error> {
        let missing = error(ErrorKind::InvalidContainer, &self.path_of(name), "is missing");
        self.take(name).ok_or(missing)
    }

    /// A field that a sandbox has no meaning for.
    pub(super) fn refuse(&mut self, name: &str, why: &str) -> Result<(), Error> {
        self.take(name).map_or(Ok(()), |node| Err(node.unsupported(why)))
    }

    /// The end: whatever is left is not known.
    pub(super) fn finish(self) -> Result<(), Error> {
        match self.fields.keys().next() {
            Some(name) => {
                let path = self.path_of(name);
                Err(error(
                    ErrorKind::InvalidContainer,
                    &path,
                    "is no field that is known",
                ))
            }
            None => Ok(()),
        }
    }
}
