//! Rows over Arrow Flight SQL, as the text that PostgreSQL would give for them.

use std::fmt::Write as _;
use std::sync::Arc;

use arrow_flight::sql::client::FlightSqlServiceClient;
use datafusion::arrow::array::{Array, ArrayRef, AsArray, RecordBatch};
use datafusion::arrow::compute::cast;
use datafusion::arrow::datatypes::{DataType, Field, Schema, TimestampMicrosecondType};
use datafusion::arrow::json::writer::{LineDelimited, WriterBuilder};
use datafusion::arrow::util::display::array_value_to_string;
use futures::TryStreamExt;
use tonic::transport::{Channel, Endpoint};

use crate::server::Ask;

pub type Client = FlightSqlServiceClient<Channel>;

pub async fn connect(ask: &Ask) -> Result<Client, String> {
    let endpoint = Endpoint::new(format!("http://{}", ask.at.flight)).map_err(|error| error.to_string())?;
    endpoint.connect().await.map(FlightSqlServiceClient::new).map_err(|error| error.to_string())
}

/// The rows of a statement, None for NULL.
pub async fn rows(client: &mut Client, sql: &str) -> Result<Vec<Vec<Option<String>>>, String> {
    let info = client.execute(sql.to_owned(), None).await.map_err(|error| error.to_string())?;
    let mut rows = Vec::new();
    for endpoint in info.endpoint {
        let stream = client.do_get(endpoint.ticket.unwrap()).await.map_err(|error| error.to_string())?;
        let batches: Vec<RecordBatch> = stream.try_collect().await.map_err(|error| error.to_string())?;
        for batch in batches {
            let columns: Vec<Vec<Option<String>>> = batch.columns().iter().map(texts).collect();
            rows.extend(
                (0..batch.num_rows()).map(|row| columns.iter().map(|column| column[row].clone()).collect()),
            );
        }
    }
    Ok(rows)
}

fn texts(column: &ArrayRef) -> Vec<Option<String>> {
    (0..column.len()).map(|row| (!column.is_null(row)).then(|| text(column, row))).collect()
}

fn text(column: &ArrayRef, row: usize) -> String {
    match column.data_type() {
        DataType::Boolean => if column.as_boolean().value(row) { "t" } else { "f" }.to_owned(),
        DataType::Timestamp(_, zone) => {
            let micros = cast(
                column,
                &DataType::Timestamp(datafusion::arrow::datatypes::TimeUnit::Microsecond, zone.clone()),
            );
            let micros = micros.unwrap().as_primitive::<TimestampMicrosecondType>().value(row);
            let at = chrono::DateTime::from_timestamp_micros(micros).unwrap();
            format!("{}{}", at.format("%Y-%m-%d %H:%M:%S%.6f"), if zone.is_some() { "+00" } else { "" })
        }
        DataType::Binary | DataType::LargeBinary | DataType::FixedSizeBinary(_) | DataType::BinaryView => {
            let bytes = cast(column, &DataType::Binary).unwrap();
            bytes.as_binary::<i32>().value(row).iter().fold("\\x".to_owned(), |mut text, byte| {
                let _ = write!(text, "{byte:02x}");
                text
            })
        }
        DataType::List(item) if !item.data_type().is_nested() => {
            let items = column.as_list::<i32>().value(row);
            let quoted = |value: String| match value.is_empty() || value.contains([',', ' ', '"']) {
                true if item.data_type() == &DataType::Utf8 => format!("{value:?}"),
                _ => value,
            };
            let items = texts(&items).into_iter().map(|value| value.map_or("NULL".to_owned(), quoted));
            format!("{{{}}}", items.collect::<Vec<_>>().join(","))
        }
        nested if nested.is_nested() => json(&column.slice(row, 1)),
        _ => array_value_to_string(column, row).unwrap(),
    }
}

fn json(value: &ArrayRef) -> String {
    let schema = Arc::new(Schema::new(vec![Field::new("v", value.data_type().clone(), true)]));
    let batch = RecordBatch::try_new(schema, vec![Arc::clone(value)]).unwrap();
    let mut text = Vec::new();
    let mut writer = WriterBuilder::new().with_explicit_nulls(true).build::<_, LineDelimited>(&mut text);
    writer.write(&batch).unwrap();
    writer.finish().unwrap();
    drop(writer);
    let line = String::from_utf8(text).unwrap();
    line.trim_end().strip_prefix("{\"v\":").and_then(|line| line.strip_suffix('}')).unwrap().to_owned()
}
