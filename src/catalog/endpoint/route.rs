//! Where an endpoint is found: `/videos/{video_id}/views`.

use std::fmt;

/// First segments that the server answers itself.
const RESERVED: [&str; 7] = ["sql", "openapi.json", "healthz", "readyz", "metrics", "snapshot", "pulse"];

/// Segments of a path, of which some are parameters.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Route(Vec<Segment>);

#[derive(Debug, Clone, PartialEq, Eq)]
enum Segment {
    Word(String),
    Parameter(String),
}

impl Route {
    /// # Errors
    /// Why `text` is none.
    pub fn parse(text: &str) -> Result<Self, String> {
        let rest = text.strip_prefix('/').ok_or_else(|| format!("a route begins with /, not as {text:?}"))?;
        let segments = rest.split('/').map(segment).collect::<Result<Vec<_>, _>>()?;
        if let Some(Segment::Word(first)) = segments.first()
            && RESERVED.contains(&first.as_str())
        {
            return Err(format!("/{first} belongs to the server: choose another route"));
        }
        let names: Vec<&str> = segments.iter().filter_map(Segment::parameter).collect();
        let twice =
            names.iter().enumerate().find(|(index, name)| names.iter().take(*index).any(|other| other == *name));
        match twice {
            Some((_, name)) => Err(format!("the route has {{{name}}} twice")),
            None => Ok(Self(segments)),
        }
    }

    /// Whether its first segment is this word.
    pub fn is_below(&self, word: &str) -> bool {
        matches!(self.0.first(), Some(Segment::Word(first)) if first == word)
    }

    /// Names of its parameters, in order.
    pub fn parameters(&self) -> impl Iterator<Item = &str> {
        self.0.iter().filter_map(Segment::parameter)
    }

    /// The values that a path, decoded and cut into segments, gives to the parameters; none when it is another one.
    pub fn values<'a>(&'a self, path: &'a [String]) -> Option<Vec<(&'a str, &'a str)>> {
        if path.len() != self.0.len() {
            return None;
        }
        let mut values = Vec::new();
        for (segment, given) in self.0.iter().zip(path) {
            match segment {
                Segment::Word(word) if word == given => {}
                Segment::Word(_) => return None,
                Segment::Parameter(_) if given.is_empty() => return None,
                Segment::Parameter(name) => values.push((name.as_str(), given.as_str())),
            }
        }
        Some(values)
    }

    /// Whether a path could belong to both.
    pub fn overlaps(&self, other: &Self) -> bool {
        let alike = |pair: (&Segment, &Segment)| match pair {
            (Segment::Word(a), Segment::Word(b)) => a == b,
            _ => true,
        };
        self.0.len() == other.0.len() && self.0.iter().zip(&other.0).all(alike)
    }
}

impl Segment {
    fn parameter(&self) -> Option<&str> {
        match self {
            Self::Word(_) => None,
            Self::Parameter(name) => Some(name),
        }
    }
}

fn segment(text: &str) -> Result<Segment, String> {
    if let Some(name) = text.strip_prefix('{').and_then(|rest| rest.strip_suffix('}')) {
        return Ok(Segment::Parameter(name.to_owned()));
    }
    let plain = |c: char| c.is_ascii_alphanumeric() || "-._~".contains(c);
    match text {
        "" => Err("a route has no empty segments, and does not end with /".to_owned()),
        "." | ".." => Err(format!("a route has no segment {text}")),
        _ if text.chars().all(plain) => Ok(Segment::Word(text.to_owned())),
        _ => Err(format!("segment {text:?} is neither {{name}} nor of letters, digits and - . _ ~")),
    }
}

impl fmt::Display for Route {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|segment| match segment {
            Segment::Word(word) => write!(f, "/{word}"),
            Segment::Parameter(name) => write!(f, "/{{{name}}}"),
        })
    }
}
