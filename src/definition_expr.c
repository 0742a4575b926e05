/*
 * definition_expr.c
 *		Expressions of a definition (condition, while, for_each, cases, times,
 *		inputs, output) -> the one SELECT that evaluates each of them.
 *
 * Called by definition.c while it compiles.  Parses, but analyses nothing and
 * reads no catalog: what the names in an expression mean to the server is
 * define_check.c's.
 *
 * Names without a declared type would be bound as untyped text, for the server
 * to resolve.  In an expression that is often wrong, or wrong for some values:
 * ":total > 100" would make :total an integer, ":a > :b" compare texts.  So
 * operators that say what is meant give such a name a type: a number beside a
 * number, JSON where two such names are compared or a JSON operator is used.
 */
#include "postgres.h"

#include "access/transam.h"
#include "catalog/pg_type.h"
#include "nodes/nodeFuncs.h"
#include "nodes/parsenodes.h"
#include "parser/parser.h"
#include "utils/builtins.h"
#include "utils/jsonb.h"

#include "compat.h"
#include "compile.h"

/* How any value is written for a parameter of type jsonb. */
static const SagaType json_type = {
	.type = JSONBOID,
	.typmod = -1,
	.base = JSONBOID,
	.base_typmod = -1,
	.kind = SAGA_TYPE_JSON,
};

static const char *
place_step(const SagaPlace *place)
{
	return place->node >= 0
		? place->c->def->graph->nodes[place->node].name : NULL;
}

static void
add_fault(const SagaPlace *place, const char *sqlstate, const char *hint,
		  const char *message)
{
	SagaFault  *fault = saga_fault(place->c->faults, place_step(place), hint,
								   "%s: %s", place->part, message);

	strlcpy(fault->sqlstate, sqlstate, sizeof(fault->sqlstate));
}

/* ---- types of names that have none ---- */

static const char *
operator_name(const A_Expr *e)
{
	return strVal(llast(e->name));
}

static bool
is_one_of(const char *name, const char *const *list)
{
	for (; *list != NULL; list++)
		if (strcmp(name, *list) == 0)
			return true;
	return false;
}

static const char *const comparisons[] =
{"=", "<>", "<", ">", "<=", ">=", NULL};
static const char *const arithmetic[] =
{"+", "-", "*", "/", "%", NULL};
static const char *const json_operators[] =
{"->", "->>", "#>", "#>>", "@>", "<@", "?", "?|", "?&", "@?", "@@", NULL};

/* The parameter a node is, if it has no type yet; or NULL. */
static SagaParam *
untyped(SagaTemplate *tmpl, const Node *node)
{
	int			number;

	if (node == NULL || !IsA(node, ParamRef))
		return NULL;
	number = ((const ParamRef *) node)->number;
	if (number < 1 || number > tmpl->nparams ||
		OidIsValid(tmpl->params[number - 1].type))
		return NULL;
	return &tmpl->params[number - 1];
}

static bool
is_number(const Node *node)
{
	const A_Const *c = (const A_Const *) node;

	return node != NULL && IsA(node, A_Const) && !c->isnull &&
		(nodeTag(&c->val) == T_Integer || nodeTag(&c->val) == T_Float);
}

static void
set_number(SagaParam *param)
{
	if (param != NULL)
		param->type = param->bind_type = NUMERICOID;
}

static void
set_json(SagaParam *param)
{
	if (param == NULL)
		return;
	param->type = param->bind_type = JSONBOID;
	param->type_info = &json_type;
}

/* All of them numbers if any of them is. */
static void
type_alike(SagaTemplate *tmpl, Node *one, List *others)
{
	bool		number = is_number(one);
	ListCell   *lc;

	foreach(lc, others)
		number |= is_number(lfirst(lc));
	if (!number)
		return;
	set_number(untyped(tmpl, one));
	foreach(lc, others)
		set_number(untyped(tmpl, lfirst(lc)));
}

static void
type_operands(SagaTemplate *tmpl, A_Expr *e)
{
	const char *name = operator_name(e);
	SagaParam  *left = untyped(tmpl, e->lexpr);
	SagaParam  *right = untyped(tmpl, e->rexpr);
	bool		compared = is_one_of(name, comparisons);
	bool		computed = is_one_of(name, arithmetic);

	if (is_one_of(name, json_operators))
	{
		set_json(left);
		if (strcmp(name, "@>") == 0 || strcmp(name, "<@") == 0)
			set_json(right);
	}
	else if ((compared || computed) &&
			 (is_number(e->lexpr) || is_number(e->rexpr) ||
			  (computed && right != NULL && (left != NULL || e->lexpr == NULL))))
	{
		set_number(left);
		set_number(right);
	}
	else if (compared && left != NULL && right != NULL)
	{
		set_json(left);
		set_json(right);
	}
}

static bool
type_names(Node *node, void *context)
{
	SagaTemplate *tmpl = context;

	if (node == NULL)
		return false;
	if (IsA(node, A_Expr))
	{
		A_Expr	   *e = (A_Expr *) node;

		switch (e->kind)
		{
			case AEXPR_OP:
			case AEXPR_DISTINCT:
			case AEXPR_NOT_DISTINCT:
				type_operands(tmpl, e);
				break;
			case AEXPR_IN:
			case AEXPR_BETWEEN:
			case AEXPR_NOT_BETWEEN:
			case AEXPR_BETWEEN_SYM:
			case AEXPR_NOT_BETWEEN_SYM:
				type_alike(tmpl, e->lexpr, (List *) e->rexpr);
				break;
			default:
				break;
		}
	}
	else if (IsA(node, CoalesceExpr))
		type_alike(tmpl, NULL, ((CoalesceExpr *) node)->args);
	else if (IsA(node, NullTest))
		set_json(untyped(tmpl, (Node *) ((NullTest *) node)->arg));
	else if (IsA(node, FuncCall))
	{
		FuncCall   *call = (FuncCall *) node;

		/* which takes a value of any type */
		if (list_length(call->args) == 1 &&
			strcmp(strVal(llast(call->funcname)), "to_jsonb") == 0)
			set_json(untyped(tmpl, linitial(call->args)));
	}
	return raw_expression_tree_walker(node, type_names, context);
}

/* ---- parsing ---- */

/*
 * Parse; what the parser says of it, or NULL.  A parser holds nothing when it
 * fails, so its error can be caught without a subtransaction.
 */
static ErrorData *
parse(const char *sql, List **parsed)
{
	MemoryContext context = CurrentMemoryContext;
	ErrorData  *volatile error = NULL;

	PG_TRY();
	{
		*parsed = raw_parser(sql, RAW_PARSE_DEFAULT);
	}
	PG_CATCH();
	{
		MemoryContextSwitchTo(context);
		error = CopyErrorData();
		if (error->sqlerrcode != ERRCODE_SYNTAX_ERROR)
			PG_RE_THROW();
		FlushErrorState();
	}
	PG_END_TRY();
	return error;
}

/* SELECT (expression), and nothing but that? */
static bool
is_bare(List *parsed)
{
	SelectStmt	bare = {.type = T_SelectStmt};
	SelectStmt *select;
	ResTarget  *target;

	if (list_length(parsed) != 1)
		return false;
	select = (SelectStmt *) linitial_node(RawStmt, parsed)->stmt;
	if (!IsA(select, SelectStmt) || list_length(select->targetList) != 1)
		return false;
	bare.targetList = select->targetList;
	bare.limitOption = select->limitOption;
	target = linitial_node(ResTarget, select->targetList);
	return equal(select, &bare) && target->name == NULL &&
		target->indirection == NIL;
}

/* Is the text an expression?  Adds a fault if it is not. */
static bool
check_expression(SagaPlace *place, const char *text)
{
	MemoryContext old = MemoryContextSwitchTo(place->c->scratch);
	SagaTemplate *tmpl;
	ErrorData  *error = NULL;
	List	   *parsed = NIL;
	bool		ok;

	tmpl = saga_compile_template(place, psprintf("SELECT (%s\n)", text));
	ok = tmpl != NULL && (error = parse(tmpl->sql, &parsed)) == NULL &&
		is_bare(parsed);
	if (error != NULL)
		add_fault(place, "42601",
				  "Write an SQL expression with parameters as :name.",
				  error->message);
	else if (tmpl != NULL && !ok)
		add_fault(place, "", "Put parentheses around a SELECT.",
				  "the text is no expression");
	MemoryContextSwitchTo(old);
	return ok;
}

/* The SELECT that is run, of which every part is known to parse. */
static SagaCall *
compile_select(SagaPlace *place, const char *sql)
{
	SagaCall   *call = saga_compile_new_call(NULL, SAGA_DEFAULT_TIMEOUT, NULL);
	MemoryContext old;
	ErrorData  *error;
	List	   *parsed = NIL;

	call->shape = SAGA_RESULT_FIRST;
	call->part = place->part;
	call->tmpl = saga_compile_template(place, sql);
	if (call->tmpl == NULL)
		return NULL;
	old = MemoryContextSwitchTo(place->c->scratch);
	error = parse(call->tmpl->sql, &parsed);
	if (error != NULL)
		add_fault(place, "42601", NULL, error->message);
	else
		(void) type_names((Node *) linitial_node(RawStmt, parsed)->stmt,
						  call->tmpl);
	MemoryContextSwitchTo(old);
	saga_template_rehash(call->tmpl);
	return error == NULL ? call : NULL;
}

/* ---- JSON texts with names in them ---- */

/* The end of a name that begins at the colon p, or NULL. */
static const char *
name_end(const char *text, const char *p, bool in_string)
{
	char	  **parts;
	int			nparts;

	if (in_string && p[1] != '{')
		return NULL;
	return saga_template_name(text, p, &parts, &nparts);
}

static void
append_literal(StringInfo sql, const char *text, int len)
{
	appendStringInfoChar(sql, '\'');
	for (int i = 0; i < len; i++)
	{
		if (text[i] == '\'')
			appendStringInfoChar(sql, '\'');
		appendStringInfoChar(sql, text[i]);
	}
	appendStringInfoString(sql, "'::pg_catalog.text");
}

/* What a name contributes: a JSON value, or in a string its characters. */
static void
append_value(StringInfo sql, const char *name, int len, bool in_string)
{
	static const char join[] = " OPERATOR(pg_catalog.||) ";

	if (name[0] == '{')
	{
		name++;
		len -= 2;
	}
	appendStringInfoString(sql, join);
	if (in_string)
		appendStringInfo(sql, "pg_catalog.regexp_replace(pg_catalog.to_jsonb("
						 "COALESCE(:{%.*s}::pg_catalog.text, ''))::pg_catalog.text, "
						 "'^\"|\"$', '', 'g')", len, name);
	else
		appendStringInfo(sql, "COALESCE(pg_catalog.to_jsonb(:{%.*s})::pg_catalog.text, 'null')",
						 len, name);
	appendStringInfoString(sql, join);
}

/* Would it be JSON, whatever the values?  Else NULL, with a fault. */
static bool
check_json(SagaPlace *place, char *sample)
{
	MemoryContext context = CurrentMemoryContext;
	ErrorData  *volatile error = NULL;

	PG_TRY();
	{
		(void) DirectFunctionCall1(jsonb_in, CStringGetDatum(sample));
	}
	PG_CATCH();
	{
		MemoryContextSwitchTo(context);
		error = CopyErrorData();
		if (ERRCODE_TO_CATEGORY(error->sqlerrcode) != ERRCODE_DATA_EXCEPTION)
			PG_RE_THROW();
		FlushErrorState();
	}
	PG_END_TRY();
	if (error != NULL)
		add_fault(place, unpack_sql_state(error->sqlerrcode),
				  "Write JSON with :name where a value is to be, and :{name} inside of a string; anything that does not begin with a brace or bracket is an SQL expression.",
				  error->detail ? psprintf("%s: %s", error->message, error->detail)
				  : error->message);
	return error == NULL;
}

/* The SQL expression that builds it; NULL, with a fault, if it is no JSON. */
static char *
json_expression(SagaPlace *place, const char *text)
{
	StringInfoData sql;
	StringInfoData sample;
	const char *start = text;
	bool		in_string = false;

	initStringInfo(&sql);
	initStringInfo(&sample);
	appendStringInfoChar(&sql, '(');
	for (const char *p = text; *p != '\0'; p++)
	{
		const char *end = *p == ':' ? name_end(text, p, in_string) : NULL;

		if (end != NULL)
		{
			append_literal(&sql, start, p - start);
			append_value(&sql, p + 1, end - p - 1, in_string);
			if (!in_string)
				appendStringInfoString(&sample, "null");
			start = end;
			p = end - 1;
			continue;
		}
		appendStringInfoChar(&sample, *p);
		if (*p == '"')
			in_string = !in_string;
		else if (*p == '\\' && in_string && p[1] != '\0')
			appendStringInfoChar(&sample, *++p);
	}
	append_literal(&sql, start, strlen(start));
	appendStringInfoString(&sql, ")::pg_catalog.jsonb");
	return check_json(place, sample.data) ? sql.data : NULL;
}

/* ---- the expressions ---- */

static char *
wrap(const SagaPlace *place, SagaExpression kind, const char *text)
{
	switch (kind)
	{
		case SAGA_EXPR_WHILE:

			/*
			 * Before the first iteration there is nothing to be seen of the
			 * steps it looks at: that one is unconditional.
			 */
			if (place->body_seen)
				return psprintf("SELECT pg_catalog.to_jsonb(CASE WHEN :{iteration} OPERATOR(pg_catalog.=) 0 THEN true"
								" ELSE COALESCE((%s\n)::boolean, false) END)", text);
			/* FALLTHROUGH */
		case SAGA_EXPR_BOOLEAN:
			return psprintf("SELECT pg_catalog.to_jsonb(COALESCE((%s\n)::boolean, false))",
							text);
		case SAGA_EXPR_JSON:
			return psprintf("SELECT pg_catalog.to_jsonb((%s\n))", text);
		case SAGA_EXPR_DURATION:
			return psprintf("SELECT pg_catalog.to_jsonb(extract(epoch FROM"
							" pg_catalog.now() OPERATOR(pg_catalog.+) (%s\n)::interval))",
							text);
		case SAGA_EXPR_INSTANT:
			return psprintf("SELECT pg_catalog.to_jsonb(extract(epoch FROM"
							" (%s\n)::timestamp with time zone))", text);
	}
	Assert(false);
	return NULL;
}

/*
 * Of the text of an expression: a name alone, or a literal alone?  (Quotes
 * that are doubled in it make it none, which does no harm.)
 */
static bool
is_plain(const char *text, const SagaTemplate *tmpl)
{
	size_t		len = strlen(text);
	const char *end = text[0] == ':' ? name_end(text, text, false) : NULL;

	if (tmpl->nparams == 0)
		return len > 1 && text[0] == '\'' &&
			strcspn(text + 1, "'\\") == len - 2;
	return tmpl->nparams == 1 && end != NULL && *end == '\0';
}

/* Does reading the values run nobody's code? */
static bool
types_are_built_in(const SagaTemplate *tmpl)
{
	for (int i = 0; i < tmpl->nparams; i++)
		if (tmpl->params[i].type >= FirstGenbkiObjectId)
			return false;
	return true;
}

static char *
trimmed(const char *text)
{
	size_t		len;

	text += strspn(text, " \t\r\n\f\v");
	len = strlen(text);
	while (len > 0 && strchr(" \t\r\n\f\v", text[len - 1]) != NULL)
		len--;
	return pnstrdup(text, len);
}

/*
 * Is it meant as JSON?  No expression begins with a brace or bracket; one that
 * is a quoted name alone would be a column, and there are none.
 */
static bool
is_json_text(const char *text)
{
	const char *p = text + 1;

	if (text[0] != '"')
		return text[0] == '{' || text[0] == '[';
	while (*p != '\0' && *p != '"')
		p += *p == '\\' && p[1] != '\0' ? 2 : 1;
	return *p == '"' && p[1] == '\0';
}

SagaCall *
saga_compile_expression(SagaPlace *place, SagaExpression kind, const char *text)
{
	SagaCall   *call;
	bool		json;

	text = trimmed(text);
	json = kind == SAGA_EXPR_JSON && is_json_text(text);
	if (json)
		text = json_expression(place, text);
	place->body_seen = false;
	if (text == NULL || !check_expression(place, text))
		return NULL;
	call = compile_select(place, wrap(place, kind, text));
	if (call != NULL)
		call->plain = (json || is_plain(text, call->tmpl)) &&
			types_are_built_in(call->tmpl);
	return call;
}

SagaCall *
saga_compile_cases(SagaPlace *place, List *texts, int otherwise)
{
	StringInfoData sql;
	int			n = 0;
	bool		ok = true;
	ListCell   *lc;

	initStringInfo(&sql);
	appendStringInfoString(&sql, "SELECT pg_catalog.to_jsonb(");
	if (texts != NIL)
		appendStringInfoString(&sql, "CASE");
	foreach(lc, texts)
	{
		ok &= check_expression(place, lfirst(lc));
		appendStringInfo(&sql, " WHEN (%s\n)::boolean THEN %d",
						 (char *) lfirst(lc), n++);
	}
	appendStringInfo(&sql, texts != NIL ? " ELSE (%d) END)" : "(%d))", otherwise);
	return ok ? compile_select(place, sql.data) : NULL;
}
