/*
 * template_http.c
 *		Action text of HTTP steps: METHOD /path?query {json body}.
 *
 * The counterpart of template.c, with whose scopes and values it works: text
 * is taken apart when a definition is compiled, and values are encoded for
 * their places when a call is made, so that none can change what is called.
 * Where the server comes from is not of its concern: there is no host in the
 * text.  Reads no catalog but for conversions of encodings.
 */
#include "postgres.h"

#include <ctype.h>

#include "catalog/pg_type.h"
#include "lib/stringinfo.h"
#include "mb/pg_wchar.h"
#include "utils/builtins.h"
#include "utils/elog.h"
#include "utils/fmgrprotos.h"
#include "utils/json.h"

#include "compat.h"
#include "template.h"

#define MAX_PARAMS		1000
#define MAX_PATH_BYTES	65536

typedef struct HttpScanner
{
	const char *text;
	const char *p;				/* next character */
	SagaNameScope *scope;
	SagaParam  *params;
	int			nparams;
	int			maxparams;
	List	   *pieces;			/* of the part being scanned */
	StringInfoData piece;
	StringInfoData check;		/* the body with something in each place */
	char	   *problem;
} HttpScanner;

static const char *const methods[] = {"GET", "HEAD", "POST", "PUT", "PATCH",
"DELETE", "OPTIONS", NULL};

/* Values are JSON here, whatever type they have in this database. */
static const SagaType json_value = {.type = JSONBOID,.typmod = -1,
.base = JSONBOID,.base_typmod = -1,.kind = SAGA_TYPE_JSON};

/* ---- the scanner ---- */

static const char *
find_method(const char *text, size_t len)
{
	for (int i = 0; methods[i]; i++)
	{
		if (strlen(methods[i]) == len &&
			pg_strncasecmp(methods[i], text, len) == 0)
			return methods[i];
	}
	return NULL;
}

static const char *
skip_space(const char *p)
{
	while (isspace((unsigned char) *p))
		p++;
	return p;
}

bool
saga_template_looks_http(const char *text)
{
	const char *p = skip_space(text);
	size_t		len = 0;

	while (isalpha((unsigned char) p[len]))
		len++;
	if (find_method(p, len) == NULL || !isspace((unsigned char) p[len]))
		return false;
	p = skip_space(p + len);
	return p[0] == '/' && p[1] != '*';
}

static char *
to_utf8(const char *text)
{
	return pg_server_to_any(text, strlen(text), PG_UTF8);
}

static void
end_piece(HttpScanner *s)
{
	s->pieces = lappend(s->pieces, pstrdup(to_utf8(s->piece.data)));
	resetStringInfo(&s->piece);
}

static char **
take_pieces(HttpScanner *s)
{
	char	  **array;
	int			n = 0;
	ListCell   *lc;

	end_piece(s);
	array = palloc(list_length(s->pieces) * sizeof(char *));
	foreach(lc, s->pieces)
		array[n++] = lfirst(lc);
	s->pieces = NIL;
	return array;
}

/*
 * Names of the system are text, unless of a type that looks the same in JSON;
 * all else is JSON from the start.
 */
static bool
is_plain_text(const SagaParam *param)
{
	return param->scope == SAGA_PARAM_SYSTEM && param->type_info == NULL &&
		(param->type == TEXTOID || param->type == UUIDOID ||
		 param->type == TIMESTAMPTZOID);
}

static void
add_param(HttpScanner *s, const char *end, char **parts, int nparts,
		  SagaParamPlace place)
{
	SagaParam  *param;

	if (s->nparams == MAX_PARAMS)
	{
		s->problem = psprintf("more than %d parameters", MAX_PARAMS);
		return;
	}
	if (s->nparams == s->maxparams)
	{
		s->maxparams *= 2;
		s->params = repalloc(s->params, s->maxparams * sizeof(SagaParam));
	}
	param = &s->params[s->nparams];
	memset(param, 0, sizeof(SagaParam));
	param->name = pnstrdup(s->p, end - s->p);
	s->problem = s->scope->resolve(s->scope, nparts, parts, param);
	if (s->problem != NULL)
		return;
	param->place = place;
	if (!is_plain_text(param))
		param->type_info = place == SAGA_PLACE_JSON ? &json_value : NULL;
	s->nparams++;
	end_piece(s);
	s->p = end;
}

static bool
is_dots(const char *segment, size_t len)
{
	return (len == 1 && segment[0] == '.') ||
		(len == 2 && segment[0] == '.' && segment[1] == '.');
}

/* Is a whole segment of the path "." or ".."? */
static bool
has_dots(const char *path)
{
	while (*path == '/')
	{
		size_t		len = strcspn(path + 1, "/?");

		if (is_dots(path + 1, len))
			return true;
		path += 1 + len;
	}
	return false;
}

/* What may not stand in a URL as it is; NULL: nothing is wrong. */
static char *
url_char_fault(const char *p)
{
	if (IS_HIGHBIT_SET(*p) || iscntrl((unsigned char) *p) ||
		strchr("\"<>\\^`{|}", *p) != NULL)
		return psprintf("character \"%.*s\" must be percent-encoded in a path",
						pg_mblen(p), p);
	if (*p == '#')
		return pstrdup("a path has no fragment (\"#\")");
	if (*p == '%' && (!isxdigit((unsigned char) p[1]) ||
					  !isxdigit((unsigned char) p[2])))
		return pstrdup("\"%\" must be followed by two hexadecimal digits");
	if (pg_strncasecmp(p, "%2e", 3) == 0)
		return pstrdup("a dot must not be percent-encoded");
	return NULL;
}

static void
scan_path(HttpScanner *s)
{
	StringInfoData plain;
	bool		query = false;

	if (s->p[0] != '/' || s->p[1] == '/')
	{
		s->problem = pstrdup("the path must begin with one \"/\", without a scheme and a host");
		return;
	}
	initStringInfo(&plain);
	while (*s->p != '\0' && !isspace((unsigned char) *s->p))
	{
		char	  **parts;
		int			nparts;
		const char *end = *s->p == ':' ?
			saga_template_name(s->text, s->p, &parts, &nparts) : NULL;

		if (end != NULL)
		{
			appendStringInfoChar(&plain, 'x');
			add_param(s, end, parts, nparts,
					  query ? SAGA_PLACE_QUERY : SAGA_PLACE_PATH);
		}
		else
		{
			s->problem = url_char_fault(s->p);
			query |= *s->p == '?';
			appendStringInfoChar(&plain, *s->p);
			appendStringInfoChar(&s->piece, *s->p++);
		}
		if (s->problem != NULL)
			return;
	}
	if (has_dots(plain.data))
		s->problem = pstrdup("the path must not have segments \".\" and \"..\"");
}

/* A string of the body, from its opening quote on. */
static void
scan_string(HttpScanner *s)
{
	appendStringInfoChar(&s->piece, *s->p);
	appendStringInfoChar(&s->check, *s->p++);
	while (*s->p != '\0' && s->problem == NULL)
	{
		char	  **parts;
		int			nparts;
		char		c = *s->p;
		const char *end = c == ':' && s->p[1] == '{' ?
			saga_template_name(s->text, s->p, &parts, &nparts) : NULL;

		if (end != NULL)
		{
			add_param(s, end, parts, nparts, SAGA_PLACE_JSON_STRING);
			continue;
		}
		appendStringInfoChar(&s->piece, c);
		appendStringInfoChar(&s->check, c);
		s->p++;
		if (c == '\\' && *s->p != '\0')
		{
			appendStringInfoChar(&s->piece, *s->p);
			appendStringInfoChar(&s->check, *s->p++);
		}
		else if (c == '"')
			return;
	}
}

static void
scan_body(HttpScanner *s)
{
	char		last = '\0';	/* but for white space */

	while (*s->p != '\0' && s->problem == NULL)
	{
		char	  **parts;
		int			nparts;
		const char *end = NULL;

		if (*s->p == '"')
		{
			scan_string(s);
			last = '"';
			continue;
		}
		/* behind a string it is what parts a key from its value */
		if (*s->p == ':' && last != '"')
			end = saga_template_name(s->text, s->p, &parts, &nparts);
		if (!isspace((unsigned char) *s->p))
			last = *s->p;
		if (end != NULL)
		{
			add_param(s, end, parts, nparts, SAGA_PLACE_JSON);
			appendStringInfoString(&s->check, "null");
			last = 'x';
			continue;
		}
		appendStringInfoChar(&s->piece, *s->p);
		appendStringInfoChar(&s->check, *s->p++);
	}
}

/* Why it is no JSON, or NULL. */
static char *
json_fault(char *json)
{
	MemoryContext context = CurrentMemoryContext;
	char	   *volatile fault = NULL;

	PG_TRY();
	{
		(void) DirectFunctionCall1(json_in, CStringGetDatum(json));
	}
	PG_CATCH();
	{
		ErrorData  *error;

		MemoryContextSwitchTo(context);
		error = CopyErrorData();
		if (ERRCODE_TO_CATEGORY(error->sqlerrcode) != ERRCODE_DATA_EXCEPTION &&
			error->sqlerrcode != ERRCODE_STATEMENT_TOO_COMPLEX)
			PG_RE_THROW();
		FlushErrorState();
		fault = psprintf("the body is not JSON: %s%s%s", error->message,
						 error->detail ? ": " : "",
						 error->detail ? error->detail : "");
	}
	PG_END_TRY();
	return fault;
}

static void
scan_request(HttpScanner *s, SagaTemplate *result)
{
	size_t		len = 0;

	s->p = skip_space(s->p);
	while (isalpha((unsigned char) s->p[len]))
		len++;
	result->method = find_method(s->p, len);
	if (result->method == NULL || !isspace((unsigned char) s->p[len]))
	{
		s->problem = pstrdup("it must begin with a method, one of GET, HEAD, POST, PUT, PATCH, DELETE and OPTIONS, and a path");
		return;
	}
	s->p = skip_space(s->p + len);
	scan_path(s);
	if (s->problem != NULL)
		return;
	result->npath = s->nparams;
	result->path = take_pieces(s);

	s->p = skip_space(s->p);
	if (*s->p == '\0')
		return;
	if (strcmp(result->method, "GET") == 0 || strcmp(result->method, "HEAD") == 0)
	{
		s->problem = psprintf("a %s request has no body", result->method);
		return;
	}
	scan_body(s);
	if (s->problem == NULL)
		s->problem = json_fault(s->check.data);
	if (s->problem == NULL)
		result->body = take_pieces(s);
}

SagaTemplate *
saga_http_template_parse(const char *text, SagaNameScope *scope,
						 char **problem)
{
	SagaTemplate *result = palloc0(sizeof(SagaTemplate));
	HttpScanner s;

	memset(&s, 0, sizeof(s));
	s.text = s.p = text;
	s.scope = scope;
	s.maxparams = 8;
	s.params = palloc(s.maxparams * sizeof(SagaParam));
	initStringInfo(&s.piece);
	initStringInfo(&s.check);
	scan_request(&s, result);
	*problem = s.problem;
	if (s.problem != NULL)
		return NULL;
	result->kind = SAGA_TEMPLATE_HTTP;
	result->nparams = s.nparams;
	result->params = s.params;
	return result;
}

/* ---- the binder ---- */

static char *
percent_encoded(const char *text)
{
	StringInfoData out;

	initStringInfo(&out);
	for (const unsigned char *p = (const unsigned char *) text; *p; p++)
	{
		if ((*p < 0x80 && isalnum(*p)) || strchr("-._~", *p) != NULL)
			appendStringInfoChar(&out, *p);
		else
			appendStringInfo(&out, "%%%02X", *p);
	}
	return out.data;
}

static char *
json_string(const char *text)
{
	StringInfoData out;

	initStringInfo(&out);
	escape_json(&out, text);
	return out.data;
}

/* Without the quotes around it. */
static char *
json_string_contents(const char *text)
{
	char	   *quoted = json_string(text);

	quoted[strlen(quoted) - 1] = '\0';
	return quoted + 1;
}

static char *
encode(const SagaParam *param, char *value)
{
	if (value != NULL)
		value = to_utf8(value);
	switch (param->place)
	{
		case SAGA_PLACE_PATH:
			return value ? percent_encoded(value) : NULL;
		case SAGA_PLACE_QUERY:
			return value ? percent_encoded(value) : pstrdup("");
		case SAGA_PLACE_JSON:
			return value == NULL ? pstrdup("null") :
				is_plain_text(param) ? json_string(value) : value;
		case SAGA_PLACE_JSON_STRING:
			return value ? json_string_contents(value) : pstrdup("");
		default:
			return value;
	}
}

void
saga_http_encode(const SagaTemplate *tmpl, char **values)
{
	for (int i = 0; i < tmpl->nparams; i++)
		values[i] = encode(&tmpl->params[i], values[i]);
}

static char *
assembled(char **pieces, char **values, int n)
{
	StringInfoData out;

	initStringInfo(&out);
	for (int i = 0; i < n; i++)
	{
		appendStringInfoString(&out, pieces[i]);
		appendStringInfoString(&out, values[i]);
	}
	appendStringInfoString(&out, pieces[n]);
	return out.data;
}

/*
 * A value that is missing, empty, or dots would make the path that of another
 * resource: DELETE /orders/ is not DELETE /orders/7.
 */
char *
saga_http_path(const SagaTemplate *tmpl, char **values, const char **problem)
{
	char	   *path;

	*problem = NULL;
	for (int i = 0; i < tmpl->npath; i++)
	{
		if (tmpl->params[i].place != SAGA_PLACE_PATH)
			continue;
		if (values[i] == NULL)
			*problem = "a parameter of the path is null";
		else if (values[i][0] == '\0')
			*problem = "a parameter of the path is empty";
		if (*problem != NULL)
			return NULL;
	}
	path = assembled(tmpl->path, values, tmpl->npath);
	if (has_dots(path))
		*problem = "a segment of the path would be \".\" or \"..\"";
	else if (strlen(path) > MAX_PATH_BYTES)
		*problem = "the path would be longer than 64 kB";
	return *problem ? NULL : path;
}

char *
saga_http_body(const SagaTemplate *tmpl, char **values)
{
	return tmpl->body == NULL ? NULL :
		assembled(tmpl->body, values + tmpl->npath,
				  tmpl->nparams - tmpl->npath);
}
