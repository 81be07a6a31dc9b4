//! In which form a client wants its answer: the `Accept` header.
//!
//! kubectl lists what it prefers first and plain JSON last, so every answer has a form for it: a table where we print one,
//! JSON for everything else. A form that nobody here writes (protobuf, other groups' kinds) is passed over.

use http::HeaderMap;
use http::header::ACCEPT;

use crate::failure::Failure;

/// How an answer is written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Form {
    #[default]
    Json,
    Yaml,
    /// A `Table` of `meta.k8s.io/v1`, as JSON.
    Table,
}

const JSON: &str = "application/json";
const YAML: &str = "application/yaml";
const TABLE: &str = "application/json;as=Table;v=v1;g=meta.k8s.io";

impl Form {
    /// Forms of resources and lists.
    pub(crate) const READS: &[Form] = &[Form::Json, Form::Yaml, Form::Table];
    /// Forms of a watch: YAML has no lines.
    pub(crate) const WATCHES: &[Form] = &[Form::Json, Form::Table];
    /// Forms of everything else.
    pub(crate) const DOCUMENTS: &[Form] = &[Form::Json, Form::Yaml];

    pub(crate) const fn media_type(self) -> &'static str {
        match self {
            Form::Json | Form::Table => JSON,
            Form::Yaml => YAML,
        }
    }

    /// The one of `possible` that the client likes best.
    ///
    /// # Errors
    /// It takes none of them.
    pub(crate) fn wanted(headers: &HeaderMap, possible: &[Form]) -> Result<Form, Failure> {
        let mut ranges: Vec<Range> = Vec::new();
        let mut asked = false;
        for header in headers.get_all(ACCEPT) {
            let header = String::from_utf8_lossy(header.as_bytes()).to_ascii_lowercase();
            asked |= !header.trim().is_empty();
            ranges.extend(header.split(',').filter_map(Range::read));
        }
        if !asked {
            return Ok(Form::Json);
        }
        // Stable: of what is liked equally, what stands first.
        ranges.sort_by(|one, other| other.quality.total_cmp(&one.quality));
        let form = ranges.iter().filter_map(|range| range.form).find(|form| possible.contains(form));
        form.ok_or_else(|| {
            let names = possible.iter().map(|form| if *form == Form::Table { TABLE } else { form.media_type() });
            Failure::not_acceptable(&names.collect::<Vec<_>>())
        })
    }
}

/// One media range of the header.
struct Range {
    /// What it stands for here; `None` when we do not write it.
    form: Option<Form>,
    /// From 0 to 1.
    quality: f32,
}

impl Range {
    /// `None` where the client says that it does not take this.
    fn read(text: &str) -> Option<Range> {
        let mut parts = text.split(';').map(str::trim);
        let essence = parts.next().unwrap_or_default();
        let (mut quality, mut kind, mut group, mut version) = (1.0, None, None, None);
        for (name, value) in parts.filter_map(|part| part.split_once('=')) {
            match name.trim() {
                "q" => quality = value.trim().parse::<f32>().ok().filter(|quality| (0.0..=1.0).contains(quality)).unwrap_or(0.0),
                "as" => kind = Some(value.trim()),
                "g" => group = Some(value.trim()),
                "v" => version = Some(value.trim()),
                _ => {}
            }
        }
        let form = match (essence, kind) {
            ("application/json" | "application/*" | "*/*", None) => Some(Form::Json),
            ("application/yaml" | "application/x-yaml" | "text/yaml" | "text/*", None) => Some(Form::Yaml),
            ("application/json", Some("table")) if (group, version) == (Some("meta.k8s.io"), Some("v1")) => Some(Form::Table),
            _ => None,
        };
        (quality > 0.0).then_some(Range { form, quality })
    }
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;

    use super::*;

    fn wanted(accept: &[&str], possible: &[Form]) -> Option<Form> {
        let headers = accept.iter().map(|value| (ACCEPT, HeaderValue::from_str(value).unwrap()));
        Form::wanted(&headers.collect(), possible).ok()
    }

    #[test]
    fn the_form_is_the_first_of_the_best_liked_that_can_be_written() {
        use Form::{Json, Table, Yaml};
        // As kubectl 1.32 sends it for `get` and before it looks around.
        let kubectl = "application/json;as=Table;v=v1;g=meta.k8s.io,application/json;as=Table;v=v1beta1;g=meta.k8s.io,application/json";
        let discovery = "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList,application/json";
        for (accept, possible, form) in [
            (&[][..], Form::READS, Some(Json)),
            (&[""], Form::READS, Some(Json)),
            (&["*/*"], Form::READS, Some(Json)),
            (&["text/html, application/xml;q=0.9, */*;q=0.8"], Form::READS, Some(Json)),
            (&["application/json"], Form::READS, Some(Json)),
            (&["application/json; charset=utf-8"], Form::READS, Some(Json)),
            (&["Application/YAML"], Form::READS, Some(Yaml)),
            (&["application/json;q=0.5, application/yaml"], Form::READS, Some(Yaml)),
            (&["application/yaml;q=0.5", "application/json"], Form::READS, Some(Json)),
            (&["application/yaml;q=0, */*"], Form::READS, Some(Json)),
            (&[kubectl], Form::READS, Some(Table)),
            (&[kubectl], Form::WATCHES, Some(Table)),
            (&[kubectl], Form::DOCUMENTS, Some(Json)),
            (&["application/json;as=Table;g=meta.k8s.io;v=v1"], Form::READS, Some(Table)),
            (&["application/json;as=Table;g=meta.k8s.io;v=v2"], Form::READS, None),
            (&[discovery], Form::READS, Some(Json)),
            (&["application/vnd.kubernetes.protobuf,application/json"], Form::READS, Some(Json)),
            (&["application/vnd.kubernetes.protobuf"], Form::READS, None),
            (&["application/yaml"], Form::WATCHES, None),
            (&["application/json;q=0"], Form::READS, None),
            (&["text/html", "image/png"], Form::READS, None),
        ] {
            assert_eq!(wanted(accept, possible), form, "{accept:?}");
        }
    }
}
