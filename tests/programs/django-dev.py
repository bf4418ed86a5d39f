"""Django's development server: login with CSRF (Origin against Host), sessions, uploads, redirects"""

import re

import requests

from common import pattern, python, step

KIND = "http"
NEEDS = []
PIP = ["django", "requests"]

SITE = r'''
import sys
from django.conf import settings
from django.core.management import execute_from_command_line
settings.configure(
    DEBUG=True, SECRET_KEY="x" * 50, ROOT_URLCONF=__name__, ALLOWED_HOSTS=[".piko.test"],
    INSTALLED_APPS=["django.contrib.auth", "django.contrib.contenttypes", "django.contrib.sessions", "django.contrib.messages",
                    "django.contrib.admin"],
    MIDDLEWARE=["django.middleware.security.SecurityMiddleware", "django.contrib.sessions.middleware.SessionMiddleware",
                "django.middleware.common.CommonMiddleware", "django.middleware.csrf.CsrfViewMiddleware",
                "django.contrib.auth.middleware.AuthenticationMiddleware", "django.contrib.messages.middleware.MessageMiddleware"],
    TEMPLATES=[{"BACKEND": "django.template.backends.django.DjangoTemplates", "APP_DIRS": True, "OPTIONS": {"context_processors": [
        "django.template.context_processors.request", "django.contrib.auth.context_processors.auth",
        "django.contrib.messages.context_processors.messages"]}}],
    DATABASES={"default": {"ENGINE": "django.db.backends.sqlite3", "NAME": sys.argv[2] + "/db.sqlite"}},
    SECURE_PROXY_SSL_HEADER=("HTTP_X_FORWARDED_PROTO", "https"), DEFAULT_AUTO_FIELD="django.db.models.AutoField", USE_TZ=True)
import django
django.setup()
from django.contrib import admin
from django.http import HttpResponse, JsonResponse
from django.urls import path

def absolute(request): return HttpResponse(request.build_absolute_uri("/a?b=1"))
def upload(request): return JsonResponse({"size": request.FILES["file"].size, "name": request.POST["name"]})
from django.views.decorators.csrf import csrf_exempt
urlpatterns = [path("admin/", admin.site.urls), path("absolute", absolute), path("upload", csrf_exempt(upload)), path("page/", absolute)]

if __name__ == "__main__":
    execute_from_command_line(["x", "migrate", "-v0"])
    from django.contrib.auth.models import User
    User.objects.create_superuser("me", "a@b.c", "secret")
    execute_from_command_line(["x", "runserver", "--noreload", f"127.0.0.1:{sys.argv[1]}"])
'''


def start(work, port):
    (work / "site.py").write_text("")
    (work / "mysite.py").write_text(SITE)
    yield [python(), work / "mysite.py", port, work]


@step
def the_url_as_the_service_sees_it(way):
    return requests.get(way.url("/absolute"), timeout=20).text


@step
def redirect_to_a_slash(way):
    answer = requests.get(way.url("/page"), allow_redirects=False, timeout=20)
    return answer.status_code, answer.headers["Location"]


@step
def login(way):
    with requests.Session() as session:
        form = session.get(way.url("/admin/login/?next=/admin/"), timeout=20)
        token = re.search(r'name="csrfmiddlewaretoken" value="(\w+)"', form.text)[1]
        # As a browser does: Origin has the port that it asked at.
        answer = session.post(way.url("/admin/login/?next=/admin/"), timeout=20, headers={"Origin": way.url("")},
                              data={"csrfmiddlewaretoken": token, "username": "me", "password": "secret", "next": "/admin/"})
        again = session.get(way.url("/admin/auth/user/"), timeout=20)
        return answer.status_code, answer.url, "Site administration" in answer.text, again.status_code, sorted(session.cookies.keys())


@step
def a_foreign_origin_is_refused(way):
    with requests.Session() as session:
        form = session.get(way.url("/admin/login/"), timeout=20)
        token = re.search(r'name="csrfmiddlewaretoken" value="(\w+)"', form.text)[1]
        answer = session.post(way.url("/admin/login/"), timeout=20, headers={"Origin": "http://evil.example"},
                              data={"csrfmiddlewaretoken": token, "username": "me", "password": "secret"})
        return answer.status_code


@step
def upload(way):
    answer = requests.post(way.url("/upload"), files={"file": pattern(8_000_000)}, data={"name": "ä"}, timeout=50)
    return answer.status_code, answer.json()


@step
def a_wrong_host_is_refused(way):
    # The endpoint by header, so that the host is free.
    headers = {"Host": "elsewhere.example", "x-piko-endpoint": "django-dev"}
    return requests.get(way.url("/absolute"), headers=headers, timeout=20).status_code
