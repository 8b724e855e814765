//! `+`, `-` and `*` of integers that end in an error where DataFusion's wrap around.
//!
//! Planned in the place of the operators wherever both sides are integers, so a rate times a count is right or an
//! error (SQLSTATE 22003), never another number. Decimals are checked by Arrow itself; floats have no wrap-around.

use std::sync::Arc;

use datafusion::arrow::array::{ArrayRef, Datum};
use datafusion::arrow::compute::kernels::numeric;
use datafusion::arrow::datatypes::DataType;
use datafusion::arrow::error::ArrowError;
use datafusion::common::{DFSchema, ScalarValue, internal_err, plan_err};
use datafusion::error::Result;
use datafusion::logical_expr::expr::ScalarFunction;
use datafusion::logical_expr::planner::{ExprPlanner, PlannerResult, RawBinaryExpr};
use datafusion::logical_expr::type_coercion::binary::BinaryTypeCoercer;
use datafusion::logical_expr::{
    ColumnarValue, Expr, ExprSchemable, Operator, ScalarFunctionArgs, ScalarUDF, ScalarUDFImpl, Signature,
    Volatility,
};
use datafusion::sql::sqlparser::ast::BinaryOperator;

/// Plans the three operators.
#[derive(Debug)]
pub(super) struct CheckedArithmetic {
    functions: [Arc<ScalarUDF>; 3],
}

impl CheckedArithmetic {
    pub(super) fn new() -> Self {
        let function = |sign| {
            let signature = Signature::user_defined(Volatility::Immutable);
            Arc::new(ScalarUDF::new_from_impl(Checked { sign, signature }))
        };
        Self { functions: [Sign::Plus, Sign::Minus, Sign::Times].map(function) }
    }
}

impl ExprPlanner for CheckedArithmetic {
    fn plan_binary_op(&self, expr: RawBinaryExpr, schema: &DFSchema) -> Result<PlannerResult<RawBinaryExpr>> {
        let [plus, minus, times] = &self.functions;
        let function = match expr.op {
            BinaryOperator::Plus => plus,
            BinaryOperator::Minus => minus,
            BinaryOperator::Multiply => times,
            _ => return Ok(PlannerResult::Original(expr)),
        };
        // The type of a parameter is not known yet; then the operator stays.
        let is_integer = |expr: &Expr| expr.get_type(schema).is_ok_and(|data_type| data_type.is_integer());
        if !is_integer(&expr.left) || !is_integer(&expr.right) {
            return Ok(PlannerResult::Original(expr));
        }
        let call = ScalarFunction::new_udf(Arc::clone(function), vec![expr.left, expr.right]);
        Ok(PlannerResult::Planned(Expr::ScalarFunction(call)))
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Sign {
    Plus,
    Minus,
    Times,
}

impl Sign {
    fn operator(self) -> Operator {
        match self {
            Self::Plus => Operator::Plus,
            Self::Minus => Operator::Minus,
            Self::Times => Operator::Multiply,
        }
    }
}

#[derive(Debug, PartialEq, Eq, Hash)]
struct Checked {
    sign: Sign,
    signature: Signature,
}

impl ScalarUDFImpl for Checked {
    fn name(&self) -> &str {
        match self.sign {
            Sign::Plus => "checked_add",
            Sign::Minus => "checked_subtract",
            Sign::Times => "checked_multiply",
        }
    }

    /// As the operator would be called.
    fn schema_name(&self, args: &[Expr]) -> Result<String> {
        match args {
            [left, right] => Ok(format!("{} {} {}", left.schema_name(), self.sign.operator(), right.schema_name())),
            _ => plan_err!("{} takes two numbers", self.name()),
        }
    }

    fn signature(&self) -> &Signature {
        &self.signature
    }

    fn coerce_types(&self, arg_types: &[DataType]) -> Result<Vec<DataType>> {
        let [left, right] = arg_types else { return plan_err!("{} takes two numbers", self.name()) };
        let (left, right) = BinaryTypeCoercer::new(left, &self.sign.operator(), right).get_input_types()?;
        Ok(vec![left, right])
    }

    fn return_type(&self, arg_types: &[DataType]) -> Result<DataType> {
        let [left, right] = arg_types else { return plan_err!("{} takes two numbers", self.name()) };
        BinaryTypeCoercer::new(left, &self.sign.operator(), right).get_result_type()
    }

    fn invoke_with_args(&self, args: ScalarFunctionArgs) -> Result<ColumnarValue> {
        let [left, right] = args.args.as_slice() else {
            return internal_err!("{} takes two numbers", self.name());
        };
        Ok(match (left, right) {
            (ColumnarValue::Scalar(left), ColumnarValue::Scalar(right)) => {
                let value = self.apply(&left.to_scalar()?, &right.to_scalar()?)?;
                ColumnarValue::Scalar(ScalarValue::try_from_array(&value, 0)?)
            }
            (ColumnarValue::Array(left), ColumnarValue::Scalar(right)) => {
                ColumnarValue::Array(self.apply(left, &right.to_scalar()?)?)
            }
            (ColumnarValue::Scalar(left), ColumnarValue::Array(right)) => {
                ColumnarValue::Array(self.apply(&left.to_scalar()?, right)?)
            }
            (ColumnarValue::Array(left), ColumnarValue::Array(right)) => {
                ColumnarValue::Array(self.apply(left, right)?)
            }
        })
    }
}

impl Checked {
    fn apply(&self, left: &dyn Datum, right: &dyn Datum) -> Result<ArrayRef, ArrowError> {
        match self.sign {
            Sign::Plus => numeric::add(left, right),
            Sign::Minus => numeric::sub(left, right),
            Sign::Times => numeric::mul(left, right),
        }
    }
}
