/*
 * projection_aggs.c
 *		Which aggregates and group keys can be kept up by adding.
 *
 * Called by projection_groups.c and projection_class.c.  Decides from types and
 * built-in names only.
 */
#include "postgres.h"

#include "access/htup_details.h"
#include "catalog/pg_aggregate.h"
#include "catalog/pg_type.h"
#include "nodes/nodeFuncs.h"
#include "optimizer/optimizer.h"
#include "optimizer/tlist.h"
#include "utils/builtins.h"
#include "utils/fmgrprotos.h"
#include "utils/lsyscache.h"
#include "utils/numeric.h"

#include "projection_plan.h"

/* One less than an index can have. */
#define MAX_KEYS (INDEX_MAX_KEYS - 1)

static const struct
{
	const char *name;
	SagaAggKind kind;
}			agg_names[] =
{
	{"count", SAGA_AGG_COUNT},
	{"sum", SAGA_AGG_SUM},
	{"avg", SAGA_AGG_AVG},
	{"variance", SAGA_AGG_VAR_SAMP},
	{"var_samp", SAGA_AGG_VAR_SAMP},
	{"var_pop", SAGA_AGG_VAR_POP},
	{"stddev", SAGA_AGG_STDDEV_SAMP},
	{"stddev_samp", SAGA_AGG_STDDEV_SAMP},
	{"stddev_pop", SAGA_AGG_STDDEV_POP},
	{"bool_and", SAGA_AGG_BOOL_AND},
	{"every", SAGA_AGG_BOOL_AND},
	{"bool_or", SAGA_AGG_BOOL_OR},
	{"min", SAGA_AGG_MIN},
	{"max", SAGA_AGG_MAX},
};

Expr *
saga_agg_arg(Aggref *agg)
{
	return agg->args == NIL ? NULL :
		linitial_node(TargetEntry, agg->args)->expr;
}

/* How an aggregate is kept up, SAGA_AGG_NONE (and why) if only by reading again. */
SagaAggKind
saga_agg_kind(Aggref *agg, char **why)
{
	SagaAggKind kind = SAGA_AGG_NONE;
	char	   *name = get_func_name(agg->aggfnoid);
	Oid			type = agg->args == NIL ? InvalidOid :
		exprType((Node *) saga_agg_arg(agg));

	*why = psprintf("%s() cannot be kept up by adding and subtracting", name);
	if (agg->aggfnoid < FirstGenbkiObjectId && agg->aggkind == AGGKIND_NORMAL)
		for (int i = 0; i < (int) lengthof(agg_names); i++)
			if (strcmp(name, agg_names[i].name) == 0)
				kind = agg_names[i].kind;
	if (kind == SAGA_AGG_NONE || list_length(agg->args) > 1)
		return SAGA_AGG_NONE;
	if (kind == SAGA_AGG_MIN || kind == SAGA_AGG_MAX)
		return saga_type_groupable(type) ? kind : SAGA_AGG_NONE;
	if (agg->aggdistinct != NIL)
	{
		*why = psprintf("%s(DISTINCT ...) depends on which values a group holds",
						name);
		return SAGA_AGG_NONE;
	}
	switch (kind)
	{
		case SAGA_AGG_SUM:
		case SAGA_AGG_AVG:
			if (type == FLOAT4OID || type == FLOAT8OID)
			{
				*why = psprintf("sums of %s depend on the order of adding",
								format_type_be(type));
				return SAGA_AGG_NONE;
			}
			if (type == INT2OID || type == INT4OID || type == INT8OID ||
				type == NUMERICOID || type == INTERVALOID ||
				(type == CASHOID && kind == SAGA_AGG_SUM))
				return kind;
			return SAGA_AGG_NONE;
		case SAGA_AGG_VAR_SAMP:
		case SAGA_AGG_VAR_POP:
		case SAGA_AGG_STDDEV_SAMP:
		case SAGA_AGG_STDDEV_POP:
			if (type == INT2OID || type == INT4OID || type == INT8OID ||
				type == NUMERICOID)
				return kind;
			return SAGA_AGG_NONE;
		default:
			return kind;
	}
}

/* The aggregates of a query's own level. */
List *
saga_own_aggregates(Query *query)
{
	List	   *all = list_concat(pull_var_clause((Node *) query->targetList,
												  PVC_INCLUDE_AGGREGATES |
												  PVC_RECURSE_WINDOWFUNCS),
								  pull_var_clause(query->havingQual,
												  PVC_INCLUDE_AGGREGATES |
												  PVC_RECURSE_WINDOWFUNCS));
	List	   *result = NIL;
	ListCell   *lc;

	foreach(lc, all)
		if (IsA(lfirst(lc), Aggref))
			result = list_append_unique(result, lfirst(lc));
	return result;
}

/* ---- digits ---- */

/* Parts of dates and times that are whole numbers. */
static const char *const whole_fields[] = {
	"century", "day", "decade", "dow", "doy", "hour", "isodow", "isoyear",
	"millennium", "minute", "month", "quarter", "week", "year",
};


/* Functions that always give whole numbers, or a given number of digits. */
static int
scale_of_function(FuncExpr *func)
{
	char	   *name = get_func_name(func->funcid);

	if (func->funcid >= FirstGenbkiObjectId)
		return -1;
	if (strcmp(name, "ceil") == 0 || strcmp(name, "ceiling") == 0 ||
		strcmp(name, "floor") == 0)
		return 0;
	if (strcmp(name, "round") == 0 || strcmp(name, "trunc") == 0)
	{
		Const	   *digits;

		if (list_length(func->args) == 1)
			return 0;
		digits = lsecond(func->args);
		if (IsA(digits, Const) && !digits->constisnull)
			return Max(DatumGetInt32(digits->constvalue), 0);
		return -1;
	}
	if (strcmp(name, "extract") == 0)
	{
		Const	   *field = linitial(func->args);

		if (!IsA(field, Const) || field->constisnull)
			return -1;
		name = TextDatumGetCString(field->constvalue);
		for (int i = 0; i < (int) lengthof(whole_fields); i++)
			if (pg_strcasecmp(name, whole_fields[i]) == 0)
				return 0;
	}
	return -1;
}

/* Digits after the point of all values of a numeric expression, or -1. */
int
saga_fixed_scale(Node *expr)
{
	switch (exprType(expr))
	{
		case INT2OID:
		case INT4OID:
		case INT8OID:
			return 0;
		case NUMERICOID:
			break;
		default:
			return -1;
	}
	if (exprTypmod(expr) >= (int32) VARHDRSZ)
	{
		int			scale = (exprTypmod(expr) - VARHDRSZ) & 0x7ff;

		return scale < 1024 ? scale : 0;	/* negative scale */
	}
	switch (nodeTag(expr))
	{
		case T_Const:
			if (((Const *) expr)->constisnull ||
				numeric_is_nan(DatumGetNumeric(((Const *) expr)->constvalue)) ||
				numeric_is_inf(DatumGetNumeric(((Const *) expr)->constvalue)))
				return -1;
			return DatumGetInt32(DirectFunctionCall1(numeric_scale,
													 ((Const *) expr)->constvalue));
		case T_CaseExpr:
			{
				CaseExpr   *cases = (CaseExpr *) expr;
				int			scale = cases->defresult == NULL ? -1 :
					saga_fixed_scale((Node *) cases->defresult);
				ListCell   *lc;

				foreach(lc, cases->args)
					if (saga_fixed_scale((Node *) lfirst_node(CaseWhen, lc)->result) != scale)
						return -1;
				return scale;
			}
		case T_FuncExpr:
			{
				FuncExpr   *func = (FuncExpr *) expr;

				/* a number made numeric */
				if ((func->funcformat == COERCE_EXPLICIT_CAST ||
					 func->funcformat == COERCE_IMPLICIT_CAST) &&
					func->funcid < FirstGenbkiObjectId)
					return saga_fixed_scale(linitial(func->args));
				return scale_of_function(func);
			}
		case T_RelabelType:
			return saga_fixed_scale((Node *) ((RelabelType *) expr)->arg);
		case T_OpExpr:
			{
				OpExpr	   *op = (OpExpr *) expr;
				char	   *name = get_opname(op->opno);
				int			left;
				int			right;

				if (op->opno >= FirstGenbkiObjectId || list_length(op->args) != 2)
					return -1;
				left = saga_fixed_scale(linitial(op->args));
				right = saga_fixed_scale(lsecond(op->args));
				if (left < 0 || right < 0)
					return -1;
				if (strcmp(name, "+") == 0 || strcmp(name, "-") == 0)
					return Max(left, right);
				if (strcmp(name, "*") == 0)
					return left + right;
				return -1;
			}
		default:
			return -1;
	}
}

/* Can the groups be kept by adding?  If not, why. */
bool
saga_groups_invertible(Query *query, SagaClass *class, char **why)
{
	ListCell   *lc;

	*class = SAGA_CLASS_DELTA;
	if (list_length(query->groupClause) > MAX_KEYS)
	{
		*why = psprintf("no index can hold more than %d key columns", MAX_KEYS);
		return false;
	}
	foreach(lc, saga_own_aggregates(query))
	{
		SagaAggKind kind = saga_agg_kind(lfirst(lc), why);

		if (kind == SAGA_AGG_NONE)
			return false;
		if (kind == SAGA_AGG_MIN || kind == SAGA_AGG_MAX)
			*class = SAGA_CLASS_MIN_MAX;
	}
	foreach(lc, query->groupClause)
	{
		Node	   *expr = get_sortgroupclause_expr(lfirst(lc),
													query->targetList);

		if (!saga_type_image_equal(exprType(expr), exprTypmod(expr),
								   exprCollation(expr)) &&
			saga_fixed_scale(expr) < 0)
		{
			*why = psprintf("equal values of %s can look different, and a group shows one of them",
							format_type_be(exprType(expr)));
			return false;
		}
	}
	return true;
}
