//! What a client wants its answer in: `Accept`, `Accept-Encoding`, and `?format=` where headers cannot be set.

use axum::http::{HeaderMap, HeaderName, StatusCode, header};

use super::problem::Problem;

/// How rows are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Format {
    Json,
    Ndjson,
    Csv,
    Arrow,
    Parquet,
}

/// In the order in which they are preferred where the client does not care.
const FORMATS: [Format; 5] = [Format::Json, Format::Ndjson, Format::Csv, Format::Arrow, Format::Parquet];

impl Format {
    /// As `?format=` has it.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Json => "json",
            Self::Ndjson => "ndjson",
            Self::Csv => "csv",
            Self::Arrow => "arrow",
            Self::Parquet => "parquet",
        }
    }

    pub(super) fn media_type(self) -> &'static str {
        match self {
            Self::Json => "application/json",
            Self::Ndjson => "application/x-ndjson",
            Self::Csv => "text/csv",
            Self::Arrow => "application/vnd.apache.arrow.stream",
            Self::Parquet => "application/vnd.apache.parquet",
        }
    }

    /// The media type with its parameters.
    pub(super) fn content_type(self) -> &'static str {
        match self {
            Self::Csv => "text/csv; charset=utf-8; header=present",
            other => other.media_type(),
        }
    }

    pub(super) fn all() -> [Self; 5] {
        FORMATS
    }
}

/// How bytes are made fewer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Coding {
    Identity,
    Gzip,
    Zstd,
}

impl Coding {
    /// As `Content-Encoding` has it.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Identity => "identity",
            Self::Gzip => "gzip",
            Self::Zstd => "zstd",
        }
    }
}

/// The format that `?format=` names, or the one that `Accept` likes best.
pub(super) fn format(headers: &HeaderMap, named: Option<&str>) -> Result<Format, Problem> {
    let names = || FORMATS.map(Format::name).join(", ");
    if let Some(name) = named {
        let found = FORMATS.into_iter().find(|format| format.name() == name);
        return found
            .ok_or_else(|| Problem::parameter("format", format!("must be one of {}, not {name:?}", names())));
    }
    let wishes = wishes(headers, &header::ACCEPT);
    if wishes.is_empty() {
        return Ok(Format::Json);
    }
    let quality = |format: &Format| {
        let (family, _) = format.media_type().split_once('/').unwrap_or_default();
        let named = |name: &str| wishes.iter().find(|wish| wish.name == name).map(|wish| wish.quality);
        named(format.media_type()).or_else(|| named(&format!("{family}/*"))).or_else(|| named("*/*")).unwrap_or(0)
    };
    // Of equals the first.
    let best = FORMATS.into_iter().rev().max_by_key(quality).filter(|format| quality(format) > 0);
    best.ok_or_else(|| {
        let types = FORMATS.map(Format::media_type).join(", ");
        Problem::new(StatusCode::NOT_ACCEPTABLE, format!("answers are {types}"))
            .hint(format!("or name one of {} with ?format=", names()))
    })
}

/// The coding that the client understands and that makes the fewest bytes.
pub(super) fn coding(headers: &HeaderMap, format: Format) -> Coding {
    // Its pages are compressed already.
    if format == Format::Parquet {
        return Coding::Identity;
    }
    let wishes = wishes(headers, &header::ACCEPT_ENCODING);
    let quality = |coding: &Coding| {
        let named = |name: &str| wishes.iter().find(|wish| wish.name == name).map(|wish| wish.quality);
        named(coding.name()).or_else(|| named("*")).unwrap_or(0)
    };
    let best = [Coding::Gzip, Coding::Zstd].into_iter().max_by_key(quality);
    best.filter(|coding| quality(coding) > 0).unwrap_or(Coding::Identity)
}

struct Wish {
    name: String,
    /// In thousandths.
    quality: u32,
}

fn wishes(headers: &HeaderMap, name: &HeaderName) -> Vec<Wish> {
    let values = headers.get_all(name).into_iter().filter_map(|value| value.to_str().ok());
    let wish = |text: &str| {
        let mut parts = text.split(';').map(str::trim);
        let name = parts.next().filter(|name| !name.is_empty())?.to_ascii_lowercase();
        let quality = parts.find_map(|part| part.strip_prefix("q=").or_else(|| part.strip_prefix("Q=")));
        let quality = quality.map_or(Some(1.0), |text| text.trim().parse::<f32>().ok()).unwrap_or(0.0);
        Some(Wish { name, quality: (quality.clamp(0.0, 1.0) * 1000.0) as u32 })
    };
    values.flat_map(|value| value.split(',')).filter_map(wish).collect()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn headers(name: HeaderName, value: &str) -> HeaderMap {
        let mut headers = HeaderMap::new();
        headers.insert(name, value.parse().unwrap());
        headers
    }

    #[test]
    fn the_format_that_is_liked_best_is_chosen() {
        let chosen = |accept: &str| format(&headers(header::ACCEPT, accept), None).ok();
        assert_eq!(format(&HeaderMap::new(), None).unwrap(), Format::Json);
        for (accept, expected) in [
            ("*/*", Some(Format::Json)),
            ("text/csv", Some(Format::Csv)),
            ("Text/CSV;q=0.5, application/json;q=0.4", Some(Format::Csv)),
            ("text/*", Some(Format::Csv)),
            ("application/*;q=0.1, application/json;q=0", Some(Format::Ndjson)),
            ("application/vnd.apache.arrow.stream, */*;q=0.1", Some(Format::Arrow)),
            ("text/html,application/xhtml+xml,*/*;q=0.8", Some(Format::Json)),
            ("image/png", None),
            ("application/json;q=0", None),
            ("application/json;q=x", None),
        ] {
            assert_eq!(chosen(accept), expected, "{accept}");
        }
        assert_eq!(format(&headers(header::ACCEPT, "image/png"), Some("csv")).unwrap(), Format::Csv);
        assert!(format(&HeaderMap::new(), Some("xml")).is_err());
    }

    #[test]
    fn the_coding_is_one_that_the_client_understands() {
        let chosen = |accept: &str| coding(&headers(header::ACCEPT_ENCODING, accept), Format::Json);
        assert_eq!(coding(&HeaderMap::new(), Format::Json), Coding::Identity);
        assert_eq!(chosen("gzip, deflate, br"), Coding::Gzip);
        assert_eq!(chosen("gzip, zstd"), Coding::Zstd);
        assert_eq!(chosen("gzip;q=1, zstd;q=0.5"), Coding::Gzip);
        assert_eq!(chosen("br, gzip;q=0"), Coding::Identity);
        assert_eq!(chosen("identity"), Coding::Identity);
        assert_eq!(coding(&headers(header::ACCEPT_ENCODING, "zstd"), Format::Parquet), Coding::Identity);
    }
}
