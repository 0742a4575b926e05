/*
 * procedure_call.c
 *		The steps that durable procedures ask for: from a request, an object
 *		of the form that run_step() makes, to a call.
 *
 * Used by calls.c for those of participants; those of this database are run
 * here, by procedure_run_(), in the executor and with the rights of the
 * definition's owner, like any other local action.
 *
 * Names in the text of such a step are those of its own arguments, ":saga_id",
 * and in its compensation ":result".
 */
#include "postgres.h"

#include "catalog/pg_type.h"
#include "executor/spi.h"
#include "fmgr.h"
#include "utils/builtins.h"
#include "utils/jsonb.h"
#include "utils/memutils.h"
#include "utils/uuid.h"

#include "compat.h"
#include "define.h"
#include "isolation.h"
#include "procedure.h"
#include "spi_util.h"
#include "statement.h"

PG_FUNCTION_INFO_V1(saga_procedure_run);

/* What a request without a compensation is undone by. */
#define NOTHING_TO_UNDO		"SELECT 1"

static char *
resolve(SagaNameScope *self, int nparts, char **parts, SagaParam *param)
{
	Jsonb	   *args = self->context;
	int			system = saga_system_name(parts[0]);

	if (args && getKeyJsonValueFromContainer(&args->root, parts[0], strlen(parts[0]), NULL))
	{
		param->scope = SAGA_PARAM_INPUT;
		param->npath = nparts;
		param->path = parts;
		return NULL;
	}
	if (system == SAGA_SYS_RESULT || (system == SAGA_SYS_SAGA_ID && nparts == 1))
	{
		param->scope = SAGA_PARAM_SYSTEM;
		param->index = system;
		param->npath = nparts - 1;
		param->path = parts + 1;
		return NULL;
	}
	return psprintf("unknown name \":%s\": args has no such key", parts[0]);
}

char *
saga_asked_server(Jsonb *request)
{
	return JB_ROOT_IS_OBJECT(request) ? saga_json_text(&request->root, "server") : NULL;
}

SagaCall *
saga_asked_call(Jsonb *request, bool undo, bool http, char **problem)
{
	SagaCall   *call = palloc0(sizeof(SagaCall));
	char	   *text = saga_json_text(&request->root, undo ? "compensation" : "action");
	JsonbValue *args = saga_json_get(&request->root, "args");
	SagaNameScope scope = {resolve, NULL};

	call->kind = http ? SAGA_CALL_HTTP : SAGA_CALL_SQL;
	call->server = saga_asked_server(request);
	call->timeout_ms = SAGA_DEFAULT_TIMEOUT / 1000;
	call->expect_rows = -1;
	call->shape = undo ? SAGA_RESULT_FIRST : SAGA_RESULT_ONE;
	call->args = args ? JsonbValueToJsonb(args) :
		DatumGetJsonbP(DirectFunctionCall1(jsonb_in, CStringGetDatum("{}")));
	scope.context = call->args;
	if (text == NULL && http)
		return NULL;
	if (text == NULL)
		text = NOTHING_TO_UNDO; /* what is sent late is refused with it */
	call->tmpl = http ? saga_http_template_parse(text, &scope, problem) :
		saga_template_parse(text, &scope, problem);
	return call->tmpl ? call : NULL;
}

/* ---- in this database ---- */

/* What the step returned, for its compensation; a name would lose its type. */
static Jsonb *
result_of(Datum saga_id, Datum step, MemoryContext context)
{
	Oid			types[] = {UUIDOID, TEXTOID};
	Datum		values[] = {saga_id, step};
	SagaUserSwitch save;
	Jsonb	   *result = NULL;

	saga_as_extension_owner_begin(&save);
	if (SPI_execute_with_args("SELECT result FROM saga.log_record WHERE saga_id = $1 AND step = $2"
							  " AND kind IN ('done', 'skipped') AND operation = 'action'"
							  " ORDER BY seq DESC LIMIT 1", 2, types, values, NULL, true, 1) != SPI_OK_SELECT)
		elog(ERROR, "could not read the log");
	if (SPI_processed == 1)
	{
		bool		isnull;
		Datum		value = SPI_getbinval(SPI_tuptable->vals[0], SPI_tuptable->tupdesc, 1, &isnull);
		MemoryContext old = MemoryContextSwitchTo(context);

		if (!isnull)
			result = (Jsonb *) PG_DETOAST_DATUM_COPY(value);
		MemoryContextSwitchTo(old);
	}
	SPI_freetuptable(SPI_tuptable);
	saga_as_extension_owner_end(&save);
	return result;
}

/*
 * procedure_run_(request, undo, saga_id, step): the action or compensation
 * of a local step, as the current user.  The statement finds the types of its
 * parameters, as in every local action.
 */
Datum
saga_procedure_run(PG_FUNCTION_ARGS)
{
	bool		undo = PG_GETARG_BOOL(1);
	SagaCall   *call;
	SagaValues	values;
	char	  **bound;
	char	   *problem = NULL;
	MemoryContext caller = CurrentMemoryContext;
	Jsonb	   *result;

	if (saga_local_action == NULL ||
		memcmp(&saga_local_action->saga_id, PG_GETARG_UUID_P(2), UUID_LEN) != 0)
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("this function is called by durable procedures only")));
	call = saga_asked_call(PG_GETARG_JSONB_P(0), undo, false, &problem);
	if (call == NULL)
		ereport(ERROR,
				(errcode(ERRCODE_SYNTAX_ERROR),
				 errmsg("the step's %s cannot be read", undo ? "compensation" : "action"),
				 errdetail_internal("%s", problem)));
	memset(&values, 0, sizeof(values));
	values.saga_id = *PG_GETARG_UUID_P(2);
	values.input = call->args;
	values.node = SAGA_NO_NODE;
	if (SPI_connect() != SPI_OK_CONNECT)
		elog(ERROR, "SPI_connect failed");
	if (undo)
		values.result = result_of(PG_GETARG_DATUM(2), PG_GETARG_DATUM(3), caller);
	bound = palloc0(sizeof(char *) * Max(call->tmpl->nparams, 1));
	saga_template_bind(call->tmpl, &values, bound);
	result = saga_statement_run(call, bound, caller);
	SPI_finish();
	if (result == NULL)
		PG_RETURN_NULL();
	PG_RETURN_JSONB_P(result);
}
