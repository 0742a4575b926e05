/*
 * statement.c
 *		A local action run once: parameters whose types the statement itself
 *		decides, bound from texts.
 *
 * For whoever runs a statement without keeping its plan: trials within a
 * session (session_run.c) and the steps of durable procedures
 * (procedure_call.c).  executor.c does the same with plans that it keeps.
 * Must not change the user or any setting: that is the caller's.
 */
#include "postgres.h"

#include "catalog/pg_type.h"
#include "executor/spi.h"
#include "nodes/params.h"
#include "parser/parse_param.h"
#include "utils/lsyscache.h"

#include "compat.h"
#include "result.h"
#include "statement.h"

typedef struct ParamTypes
{
	Oid		   *types;
	int			n;
} ParamTypes;

static void
infer_parameters(ParseState *pstate, void *arg)
{
	ParamTypes *p = arg;

	setup_parse_variable_parameters(pstate, &p->types, &p->n);
}

static void
refuse(int code)
{
	ereport(ERROR,
			(errcode(ERRCODE_FEATURE_NOT_SUPPORTED),
			 errmsg("this statement cannot be a local action"),
			 errdetail_internal("%s", SPI_result_code_string(code)),
			 errhint("Put it into a function.")));
}

Jsonb *
saga_statement_run(const SagaCall *call, char **values, MemoryContext context)
{
	int			n = call->tmpl->nparams;
	ParamTypes	parse;
	SPIPrepareOptions prepare;
	SPIExecuteOptions execute;
	SPIPlanPtr	plan;
	ParamListInfo params = makeParamList(n);
	int			rc;

	parse.n = n;
	parse.types = palloc0(sizeof(Oid) * Max(n, 1));
	for (int i = 0; i < n; i++)
		parse.types[i] = OidIsValid(call->tmpl->params[i].type) ?
			call->tmpl->params[i].type : UNKNOWNOID;
	memset(&prepare, 0, sizeof(prepare));
	prepare.parserSetup = infer_parameters;
	prepare.parserSetupArg = &parse;
	prepare.parseMode = RAW_PARSE_DEFAULT;
	plan = SPI_prepare_extended(call->tmpl->sql, &prepare);
	if (plan == NULL)
		refuse(SPI_result);
	for (int i = 0; i < n; i++)
	{
		Oid			function;
		Oid			ioparam;

		if (parse.types[i] == UNKNOWNOID)
			ereport(ERROR,
					(errcode(ERRCODE_INDETERMINATE_DATATYPE),
					 errmsg("could not determine the type of parameter \"%s\"",
							call->tmpl->params[i].name),
					 errhint("Write a cast, for example :%s::text.",
							 call->tmpl->params[i].name)));
		getTypeInputInfo(parse.types[i], &function, &ioparam);
		params->params[i].value = OidInputFunctionCall(function, values[i], ioparam, -1);
		params->params[i].isnull = values[i] == NULL;
		params->params[i].pflags = PARAM_FLAG_CONST;
		params->params[i].ptype = parse.types[i];
	}
	memset(&execute, 0, sizeof(execute));
	execute.params = params;
	rc = SPI_execute_plan_extended(plan, &execute);
	if (rc < 0)
		refuse(rc);
	return saga_result_from_spi(call, rc, context);
}
