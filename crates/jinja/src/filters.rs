//! The filters of Jinja2, `value | …`: those of `jinja2/filters.py` (3.1.6) and `tojson` of transformers.

mod markup;
mod numbers;
mod sequences;
mod texts;
mod wrap;

use crate::args::Args;
use crate::attributes;
use crate::error::{Error, ErrorKind, Result};
use crate::filter_names;
use crate::json;
use crate::value::{Rendering, Value};

/// `value | name(args)`.
///
/// # Errors
/// As the filter's in Python.
pub(crate) fn call(name: &str, value: Value, args: Args, renderer: &dyn Rendering) -> Result<Value> {
    match name {
        "tojson" => json::dump(&value, args).map(Value::from),
        "default" | "d" => {
            let [default, boolean] = args.bind("do_default", ["default_value", "boolean"], 0)?;
            let is_replaced = matches!(value, Value::Undefined(_))
                || (boolean.is_some_and(|boolean| boolean.is_true()) && !value.is_true());
            Ok(if is_replaced { default.unwrap_or_else(|| Value::from("")) } else { value })
        }
        "length" | "count" => {
            let [] = args.unnamed("len", 0)?;
            value.len().map(Value::from)
        }
        "attr" => {
            let [name] = args.bind("do_attr", ["name"], 1)?;
            let name = name.unwrap_or(Value::None);
            let name = crate::args::string(&name)?;
            // Only attributes: an item of the name is not looked for.
            if matches!(value, Value::Dict(_)) && !attributes::has_attribute(&value, name, renderer)? {
                return Ok(attributes::missing_attribute(&value, name));
            }
            attributes::attribute(&value, name, renderer)
        }
        "abs" | "int" | "float" | "round" | "filesizeformat" => numbers::call(name, &value, args),
        "batch" | "slice" | "first" | "last" | "list" | "items" | "map" | "select" | "reject"
        | "selectattr" | "rejectattr" | "sort" | "dictsort" | "groupby" | "unique" | "min" | "max"
        | "sum" | "reverse" | "join" => sequences::call(name, value, args, renderer),
        "e" | "escape" | "forceescape" | "safe" | "striptags" | "xmlattr" | "urlencode" => {
            markup::call(name, &value, args, renderer)
        }
        "urlize" | "random" => Err(Error::refused(format!("the filter `{name}` is not supported"))),
        _ if filter_names::exists(name) => texts::call(name, &value, args),
        _ => Err(Error::new(ErrorKind::Runtime, format!("No filter named '{name}' found."))),
    }
}
