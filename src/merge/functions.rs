//! Functions that stand for queries: planned once when they are read, so that their faults are told before anybody calls them.

use datafusion::common::config::ConfigOptions;
use datafusion::optimizer::analyzer::Analyzer;

use super::catalog::Names;
use super::endpoints;
use crate::catalog::Fault;
use crate::catalog::function::{Functions, expand};
use crate::engine::planner::Declared;
use crate::engine::{CATALOG, Engine};

/// What cannot be planned of functions; all faults at once.
pub async fn faults(engine: &Engine, functions: &Functions, names: &Names) -> Vec<Fault> {
    let mut faults = Vec::new();
    if functions.is_empty() {
        return faults;
    }
    let session = match endpoints::session(engine, names).await {
        Ok(session) => session,
        Err(error) => {
            return vec![Fault { file: CATALOG.to_owned(), line: 0, column: 0, reason: error.strip_backtrace() }];
        }
    };
    for function in functions.values() {
        let fault = |reason: String| Fault { file: function.file.clone(), line: function.line, column: 1, reason };
        let rehearsed = function.rehearsal().and_then(|mut query| expand(&mut query, functions).map(|()| query));
        let query = match rehearsed {
            Ok(query) => query,
            Err(reason) => {
                faults.push(fault(reason));
                continue;
            }
        };
        let declared = Declared { file: &function.file, line: function.line, query: &query };
        let planned = session.state().statement_to_plan(declared.statement()).await;
        // Types are checked here, and again in each query.
        let check = |plan| Analyzer::new().execute_and_check(plan, &ConfigOptions::default(), |_, _| {});
        if let Err(error) = planned.and_then(check) {
            let Fault { reason, .. } = declared.fault(&error);
            faults.push(fault(format!("function {}: {reason}", function.name)));
        }
    }
    faults
}
